// A tensor as Python hands it over, and the checks that it passes before its address is used.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "../cpu/kernels.h"

namespace action {

// Codes of dtypes; the first three are those of `Dtype`. Any other number is a dtype that no kernel knows.
enum class Element : int { float32 = 0, float16 = 1, bfloat16 = 2, float64 = 3, int64 = 4 };

template <class T>
constexpr Element element_of();
template <>
constexpr Element element_of<float>() {
  return Element::float32;
}
template <>
constexpr Element element_of<double>() {
  return Element::float64;
}
template <>
constexpr Element element_of<int64_t>() {
  return Element::int64;
}

inline std::string name_of(Element element) {
  switch (element) {
    case Element::float32: return "float32";
    case Element::float16: return "float16";
    case Element::bfloat16: return "bfloat16";
    case Element::float64: return "float64";
    case Element::int64: return "int64";
  }
  return "another dtype";
}

// The tuple (address, dtype code, sizes, strides in elements, whether the memory is the CPU's), or None for a tensor
// that is not given. An address comes out only by way of a check of everything that a kernel relies on; what does not
// fit throws std::invalid_argument (ValueError in Python), which names the argument. Needs the interpreter lock.
class TensorArgument {
 public:
  TensorArgument(const char* name, pybind11::handle value) : name_(name), given_(!value.is_none()) {
    if (!given_) return;
    if (!PyTuple_Check(value.ptr()) || PyTuple_GET_SIZE(value.ptr()) != 5) refuse("a tensor as a tuple of five");
    const pybind11::handle sizes = item(value, 2), strides = item(value, 3);
    if (!PyTuple_Check(sizes.ptr()) || !PyTuple_Check(strides.ptr())) refuse("tuples of sizes and strides");
    dims_ = PyTuple_GET_SIZE(sizes.ptr());
    if (dims_ > kMost || PyTuple_GET_SIZE(strides.ptr()) != dims_) refuse("at most three dimensions");
    address_ = reinterpret_cast<void*>(static_cast<uintptr_t>(PyLong_AsUnsignedLongLong(item(value, 0).ptr())));
    element_ = static_cast<Element>(integer(item(value, 1)));
    for (int64_t i = 0; i < dims_; ++i) {
      sizes_[i] = integer(item(sizes, i));
      strides_[i] = integer(item(strides, i));
      count_ *= sizes_[i];
    }
    if (PyErr_Occurred()) throw pybind11::error_already_set();
    if (item(value, 4).ptr() != Py_True) refuse("a tensor in the CPU's memory");
    if (count_ > 0 && !address_) refuse("a tensor with memory");
  }

  bool given() const { return given_; }

  // Size of a dimension, of so many.
  int64_t size(int dim, int dims = 3) const {
    if (!given_ || dims_ != dims) refuse("a tensor with " + std::to_string(dims) + " dimensions");
    return sizes_[dim];
  }

  // Rows [groups, rows, features] to read, floating, with any strides.
  Matrix rows(int64_t groups, int64_t rows, int64_t features) const {
    const bool floating =
        element_ == Element::float32 || element_ == Element::float16 || element_ == Element::bfloat16;
    if (!given_ || !floating || !shaped({groups, rows, features}))
      refuse("float32, float16 or bfloat16 " + text({groups, rows, features}));
    return {address_, static_cast<Dtype>(static_cast<int>(element_)), strides_[0], strides_[1], strides_[2]};
  }

  // Contiguous elements of this type and shape.
  template <class T>
  T* contiguous(std::initializer_list<int64_t> shape) const {
    if (!given_ || element_ != element_of<T>() || !shaped(shape) || !dense())
      refuse("contiguous " + name_of(element_of<T>()) + " " + text(shape));
    return static_cast<T*>(address_);
  }

  // The same, or nullptr for a tensor that is not given.
  template <class T>
  T* optional(std::initializer_list<int64_t> shape) const {
    return given_ ? contiguous<T>(shape) : nullptr;
  }


  [[noreturn]] void refuse(const std::string& expected) const {
    std::string got = "None";
    if (given_) {
      got = name_of(element_) + " [";
      for (int64_t i = 0; i < dims_ && i < kMost; ++i) got += (i ? ", " : "") + std::to_string(sizes_[i]);
      got += "] with strides [";
      for (int64_t i = 0; i < dims_ && i < kMost; ++i) got += (i ? ", " : "") + std::to_string(strides_[i]);
      got += "]";
    }
    throw std::invalid_argument(std::string(name_) + " must be " + expected + ", got " + got);
  }

 private:
  static constexpr int64_t kMost = 3;

  static pybind11::handle item(pybind11::handle tuple, int64_t i) { return PyTuple_GET_ITEM(tuple.ptr(), i); }
  static int64_t integer(pybind11::handle value) { return PyLong_AsLongLong(value.ptr()); }

  static std::string text(std::initializer_list<int64_t> shape) {
    std::string joined;
    for (int64_t size : shape) joined += (joined.empty() ? "[" : ", ") + std::to_string(size);
    return joined + "]";
  }

  bool shaped(std::initializer_list<int64_t> shape) const {
    if (dims_ != static_cast<int64_t>(shape.size())) return false;
    int64_t dim = 0;
    for (int64_t size : shape)
      if (sizes_[dim++] != size) return false;
    return true;
  }

  bool dense() const {
    int64_t step = 1;
    for (int64_t i = dims_; i-- > 0;) {
      if (count_ > 0 && sizes_[i] != 1 && strides_[i] != step) return false;
      step *= sizes_[i];
    }
    return true;
  }

  const char* name_;
  bool given_;
  void* address_ = nullptr;
  Element element_ = Element::float32;
  int64_t dims_ = 0, count_ = 1;
  int64_t sizes_[kMost] = {}, strides_[kMost] = {};
};

}  // namespace action
