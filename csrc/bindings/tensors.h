// A tensor as Python hands it over, and the checks that it passes before its address is used.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

#include "../cpu/kernels.h"
#include "describe.h"

namespace action {

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

// A tensor, or None for one that is not given. An address comes out only by way of a check of everything that a kernel
// relies on; what does not fit throws std::invalid_argument (ValueError in Python), which names the argument. Needs the
// interpreter lock.
class TensorArgument {
 public:
  TensorArgument(const char* name, pybind11::handle value) : name_(name), given_(!value.is_none()) {
    if (!given_) return;
    const TensorReader& reader = TensorReader::instance();
    if (!reader.is_tensor(value))
      throw std::invalid_argument(std::string(name_) + " must be a tensor, got " + Py_TYPE(value.ptr())->tp_name);
    tensor_ = reader.read(value);
    if (tensor_.dims > kMost) refuse("at most three dimensions");
    for (int64_t i = 0; i < tensor_.dims; ++i) count_ *= tensor_.sizes[i];
    if (!tensor_.on_cpu) refuse("a tensor in the CPU's memory");
    if (count_ > 0 && !tensor_.address) refuse("a tensor with memory");
  }

  bool given() const { return given_; }

  // Size of a dimension, of so many.
  int64_t size(int dim, int dims = 3) const {
    if (!given_ || tensor_.dims != dims) refuse("a tensor with " + std::to_string(dims) + " dimensions");
    return tensor_.sizes[dim];
  }

  // Rows [groups, rows, features] to read, floating, with any strides.
  Matrix rows(int64_t groups, int64_t rows, int64_t features) const {
    const Element element = tensor_.element;
    const bool floating = element == Element::float32 || element == Element::float16 || element == Element::bfloat16;
    if (!given_ || !floating || !shaped({groups, rows, features}))
      refuse("float32, float16 or bfloat16 " + text({groups, rows, features}));
    const auto& strides = tensor_.strides;
    return {tensor_.address, static_cast<Dtype>(static_cast<int>(element)), strides[0], strides[1], strides[2]};
  }

  // Contiguous elements of this type and shape.
  template <class T>
  T* contiguous(std::initializer_list<int64_t> shape) const {
    if (!given_ || tensor_.element != element_of<T>() || !shaped(shape) || !dense())
      refuse(std::string("contiguous ") + name_of(element_of<T>()) + " " + text(shape));
    return static_cast<T*>(tensor_.address);
  }

  // The same, or nullptr for a tensor that is not given.
  template <class T>
  T* optional(std::initializer_list<int64_t> shape) const {
    return given_ ? contiguous<T>(shape) : nullptr;
  }

  [[noreturn]] void refuse(const std::string& expected) const {
    std::string got = "None";
    if (given_) {
      const int64_t dims = tensor_.dims < kMost ? tensor_.dims : kMost;
      got = std::string(name_of(tensor_.element)) + " " + text(tensor_.sizes, dims);
      got += " with strides " + text(tensor_.strides, dims);
    }
    throw std::invalid_argument(std::string(name_) + " must be " + expected + ", got " + got);
  }

 private:
  static constexpr int64_t kMost = Description::kMostDims;

  static std::string text(const int64_t* numbers, int64_t count) {
    std::string joined = "[";
    for (int64_t i = 0; i < count; ++i) joined += (i ? ", " : "") + std::to_string(numbers[i]);
    return joined + "]";
  }
  static std::string text(std::initializer_list<int64_t> shape) {
    return text(shape.begin(), static_cast<int64_t>(shape.size()));
  }

  bool shaped(std::initializer_list<int64_t> shape) const {
    if (tensor_.dims != static_cast<int64_t>(shape.size())) return false;
    int64_t dim = 0;
    for (int64_t size : shape)
      if (tensor_.sizes[dim++] != size) return false;
    return true;
  }

  bool dense() const {
    int64_t step = 1;
    for (int64_t i = tensor_.dims; i-- > 0;) {
      if (count_ > 0 && tensor_.sizes[i] != 1 && tensor_.strides[i] != step) return false;
      step *= tensor_.sizes[i];
    }
    return true;
  }

  const char* name_;
  bool given_;
  Description tensor_;
  int64_t count_ = 1;
};

}  // namespace action
