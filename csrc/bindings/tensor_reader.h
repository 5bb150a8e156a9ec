// Reads PyTorch's tensors, without its headers.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "../params/tensor.h"
#include "dlpack.h"

namespace action {

// Reads tensors: by PyTorch's exchange interface (tens of nanoseconds) or, where it has none or does not describe the
// tensor, by the tensor's attributes (about a microsecond). Needs the interpreter lock.
class TensorReader {
 public:
  static TensorReader& instance() {          // first called when the module is imported
    static auto* reader = new TensorReader;  // never destroyed: the interpreter ends before static objects do
    return *reader;
  }

  // Whether attributes alone are read, as with a PyTorch that has no exchange interface.
  void use_attributes(bool only) { attributes_only_ = only; }

  bool is_tensor(pybind11::handle value) const {
    return PyObject_TypeCheck(value.ptr(), reinterpret_cast<PyTypeObject*>(type_.ptr()));
  }

  // Throws what Python raises for a tensor without memory of its own, such as one that is only traced.
  void read(pybind11::handle tensor, Tensor& result) const {
    if (!by_exchange(tensor, result)) by_attributes(tensor, result);
  }

 private:
  TensorReader() {
    const pybind11::module_ torch = pybind11::module_::import("torch");
    type_ = torch.attr("Tensor");
    for (int i = 0; i < kKnown; ++i) dtypes_[i] = torch.attr(name_of(static_cast<Dtype>(i)));
    dtype_ = name("dtype"), shape_ = name("shape"), stride_ = name("stride");
    data_ptr_ = name("data_ptr"), is_cpu_ = name("is_cpu"), is_cuda_ = name("is_cuda"),
    get_device_ = name("get_device");
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

  static Dtype dtype_of(const dlpack::Tensor& view) {
    if (view.lanes != 1) return Dtype::other;
    switch (view.code << 8 | view.bits) {
      case dlpack::kFloat << 8 | 32: return Dtype::float32;
      case dlpack::kFloat << 8 | 16: return Dtype::float16;
      case dlpack::kBfloat << 8 | 16: return Dtype::bfloat16;
      case dlpack::kFloat << 8 | 64: return Dtype::float64;
      case dlpack::kInt << 8 | 64: return Dtype::int64;
      case dlpack::kInt << 8 | 32: return Dtype::int32;
      case dlpack::kUint << 8 | 8: return Dtype::uint8;
      default: return Dtype::other;
    }
  }

  bool by_exchange(pybind11::handle tensor, Tensor& result) const {
    if (!exchange_ || attributes_only_) return false;
    dlpack::Tensor view{};
    if (exchange_->tensor_from_python(tensor.ptr(), &view) != 0) {
      PyErr_Clear();
      return false;
    }
    const bool cpu = view.device_type == dlpack::kCpu;
    if (!(cpu || view.device_type == dlpack::kCuda) || view.ndim < 0 ||
        (view.ndim > 0 && (!view.shape || !view.strides)))
      return false;
    result.data = static_cast<char*>(view.data) + view.byte_offset;
    result.dtype = dtype_of(view);
    result.device = cpu ? Device::cpu : Device::cuda;
    result.device_index = cpu ? 0 : view.device_id;
    result.dims = view.ndim;
    for (int i = 0; i < view.ndim && i < Tensor::kMostDims; ++i) {
      result.sizes[i] = view.shape[i];
      result.strides[i] = view.strides[i];
    }
    return true;
  }

  void by_attributes(pybind11::handle tensor, Tensor& result) const {
    const pybind11::object dtype = get(tensor, dtype_), sizes = get(tensor, shape_), strides = call(tensor, stride_);
    result.dtype = Dtype::other;
    for (int i = 0; i < kKnown; ++i)
      if (dtype.is(dtypes_[i])) result.dtype = static_cast<Dtype>(i);
    if (!PyTuple_Check(sizes.ptr()) || !PyTuple_Check(strides.ptr()) ||
        PyTuple_GET_SIZE(sizes.ptr()) != PyTuple_GET_SIZE(strides.ptr()))
      throw pybind11::type_error("a tensor's shape and strides must be tuples of the same length");
    result.dims = static_cast<int32_t>(PyTuple_GET_SIZE(sizes.ptr()));
    for (int i = 0; i < result.dims && i < Tensor::kMostDims; ++i) {
      result.sizes[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(sizes.ptr(), i));
      result.strides[i] = PyLong_AsLongLong(PyTuple_GET_ITEM(strides.ptr(), i));
    }
    result.data = PyLong_AsVoidPtr(call(tensor, data_ptr_).ptr());
    if (is(tensor, is_cpu_)) {
      result.device = Device::cpu;
      result.device_index = 0;
    } else {
      result.device = is(tensor, is_cuda_) ? Device::cuda : Device::other;
      result.device_index = static_cast<int32_t>(PyLong_AsLong(call(tensor, get_device_).ptr()));
    }
    if (PyErr_Occurred()) throw pybind11::error_already_set();
  }

  static bool is(pybind11::handle tensor, pybind11::handle name) { return get(tensor, name).ptr() == Py_True; }
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

  static constexpr int kKnown = static_cast<int>(Dtype::other);
  static constexpr const char* kCapsule = "dlpack_exchange_api";

  pybind11::object type_, dtypes_[kKnown], dtype_, shape_, stride_, data_ptr_, is_cpu_, is_cuda_, get_device_;
  const dlpack::ExchangeApi* exchange_ = nullptr;
  bool attributes_only_ = false;
};

}  // namespace action
