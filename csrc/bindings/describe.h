// What a Python tensor is: address, dtype, sizes, strides, and whether on the CPU.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "dlpack.h"

namespace action {

// The dtypes that kernels know, the first three with the numbers of `Dtype` (kernels.h), and every other.
enum class Element : int { float32 = 0, float16 = 1, bfloat16 = 2, float64 = 3, int64 = 4, other = 5 };

inline const char* name_of(Element element) {
  constexpr const char* names[] = {"float32", "float16", "bfloat16", "float64", "int64", "another dtype"};
  return names[static_cast<int>(element)];
}

struct Description {
  static constexpr int64_t kMostDims = 3;  // sizes and strides beyond are left out

  void* address = nullptr;
  Element element = Element::other;
  bool on_cpu = false;
  int64_t dims = 0;
  int64_t sizes[kMostDims] = {}, strides[kMostDims] = {};
};

// Reads tensors: by PyTorch's exchange interface (some ten nanoseconds) or, where it has none or does not describe the
// tensor, by the tensor's attributes (about a microsecond). Needs the interpreter lock, as whatever touches Python.
class TensorReader {
 public:
  static TensorReader& instance() {  // first called when the module is imported
    static auto* reader = new TensorReader;  // never destroyed: the interpreter ends before static objects do
    return *reader;
  }

  // Whether attributes alone are read, as with a PyTorch that has no exchange interface.
  void use_attributes(bool only) { attributes_only_ = only; }

  bool is_tensor(pybind11::handle value) const {
    return PyObject_TypeCheck(value.ptr(), reinterpret_cast<PyTypeObject*>(type_.ptr()));
  }

  // Throws what Python raises for a tensor without memory of its own, like one that only traces.
  Description read(pybind11::handle tensor) const {
    Description result;
    if (!by_exchange(tensor, result)) by_attributes(tensor, result);
    return result;
  }

 private:
  TensorReader() {
    const pybind11::module_ torch = pybind11::module_::import("torch");
    type_ = torch.attr("Tensor");
    for (int i = 0; i < kKnown; ++i) dtypes_[i] = torch.attr(name_of(static_cast<Element>(i)));
    dtype_ = name("dtype"), shape_ = name("shape"), stride_ = name("stride");
    data_ptr_ = name("data_ptr"), is_cpu_ = name("is_cpu");
    const pybind11::object capsule = pybind11::getattr(type_, "__dlpack_c_exchange_api__", pybind11::none());
    if (PyCapsule_IsValid(capsule.ptr(), kCapsule)) {
      exchange_ = static_cast<const dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), kCapsule));
      while (exchange_ && exchange_->major != dlpack::kMajor) exchange_ = exchange_->previous;
      if (exchange_ && !exchange_->tensor_from_python) exchange_ = nullptr;
    }
  }

  static pybind11::object name(const char* text) {
    return pybind11::reinterpret_steal<pybind11::object>(PyUnicode_InternFromString(text));
  }

  static Element element_of(const dlpack::Tensor& view) {
    if (view.lanes != 1) return Element::other;
    switch (view.code << 8 | view.bits) {
      case dlpack::kFloat << 8 | 32: return Element::float32;
      case dlpack::kFloat << 8 | 16: return Element::float16;
      case dlpack::kBfloat << 8 | 16: return Element::bfloat16;
      case dlpack::kFloat << 8 | 64: return Element::float64;
      case dlpack::kInt << 8 | 64: return Element::int64;
      default: return Element::other;
    }
  }

  bool by_exchange(pybind11::handle tensor, Description& result) const {
    if (!exchange_ || attributes_only_) return false;
    dlpack::Tensor view{};
    if (exchange_->tensor_from_python(tensor.ptr(), &view) != 0) {
      PyErr_Clear();
      return false;
    }
    if (view.device_type != dlpack::kCpu || view.ndim < 0 || (view.ndim > 0 && (!view.shape || !view.strides)))
      return false;
    result.address = static_cast<char*>(view.data) + view.byte_offset;
    result.element = element_of(view);
    result.on_cpu = true;
    result.dims = view.ndim;
    for (int64_t i = 0; i < view.ndim && i < Description::kMostDims; ++i) {
      result.sizes[i] = view.shape[i];
      result.strides[i] = view.strides[i];
    }
    return true;
  }

  void by_attributes(pybind11::handle tensor, Description& result) const {
    const pybind11::object dtype = get(tensor, dtype_), sizes = get(tensor, shape_);
    for (int i = 0; i < kKnown; ++i)
      if (dtype.is(dtypes_[i])) result.element = static_cast<Element>(i);
    const pybind11::object strides = call(tensor, stride_);
    if (!PyTuple_Check(sizes.ptr()) || !PyTuple_Check(strides.ptr()) ||
        PyTuple_GET_SIZE(sizes.ptr()) != PyTuple_GET_SIZE(strides.ptr()))
      throw pybind11::type_error("a tensor's shape and strides must be tuples of the same length");
    result.dims = PyTuple_GET_SIZE(sizes.ptr());
    for (int64_t i = 0; i < result.dims && i < Description::kMostDims; ++i) {
      result.sizes[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(sizes.ptr(), i));
      result.strides[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(strides.ptr(), i));
    }
    result.address = PyLong_AsVoidPtr(call(tensor, data_ptr_).ptr());
    if (PyErr_Occurred()) throw pybind11::error_already_set();
    result.on_cpu = get(tensor, is_cpu_).ptr() == Py_True;
  }

  static pybind11::object get(pybind11::handle object, pybind11::handle name) {
    return checked(PyObject_GetAttr(object.ptr(), name.ptr()));
  }
  static pybind11::object call(pybind11::handle object, pybind11::handle method) {
    return checked(PyObject_CallMethodObjArgs(object.ptr(), method.ptr(), nullptr));
  }
  static pybind11::object checked(PyObject* result) {
    if (!result) throw pybind11::error_already_set();
    return pybind11::reinterpret_steal<pybind11::object>(result);
  }

  static constexpr int kKnown = static_cast<int>(Element::other);
  static constexpr const char* kCapsule = "dlpack_exchange_api";

  pybind11::object type_, dtypes_[kKnown], dtype_, shape_, stride_, data_ptr_, is_cpu_;
  const dlpack::ExchangeApi* exchange_ = nullptr;
  bool attributes_only_ = false;
};

}  // namespace action
