// What a launcher checks before a kernel sees an address. No exceptions: CUDA's host code is compiled without them.
// The code is in checks.cpp and not here: kernels are compiled once per instruction set, and the linker would take
// inline functions that their objects have in common from any one of them.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "inline.h"
#include "layout.h"

namespace action {

// The text of this thread's last failure. Each library has its own.
const char* last_error();

// Remembers the text and returns the status.
int32_t fail(Status status, const char* text);

// The same of a text that says where, and one that says what.
int32_t fail(Status status, const char* where, const char* what);

template <class T>
struct DtypeOf;
template <>
struct DtypeOf<float> {
  static constexpr Dtype value = Dtype::float32;
};
template <>
struct DtypeOf<double> {
  static constexpr Dtype value = Dtype::float64;
};
template <>
struct DtypeOf<int64_t> {
  static constexpr Dtype value = Dtype::int64;
};
template <>
struct DtypeOf<uint8_t> {
  static constexpr Dtype value = Dtype::uint8;
};

using Sizes = std::initializer_list<int64_t>;

// Of queries [G, N, D] and a bank [G, M, D].
struct Shape {
  int64_t groups, queries, rows, features;
};

// Checks a launcher's tensors and keeps the first fault. A kernel runs only if all have passed.
class Checks {
 public:
  // All tensors must be on the device of `anchor`, which must be of this kind.
  Checks(Device device, const Tensor& anchor);

  ACTION_INLINE bool passed() const { return passed_; }
  ACTION_INLINE int32_t status() const { return passed_ ? kDone : kBadArgument; }

  // Size of dimension `dim` of a tensor that must have `dims` dimensions; 0 if it has another number.
  int64_t size(const Tensor& x, const char* name, int dim, int dims);

  // Rows [G, N, D] of float32, float16 or bfloat16 to read, with any strides.
  void rows(const Tensor& x, const char* name, Sizes sizes);

  // The sizes of queries and a bank, both rows to read that fit each other.
  Shape shape(const Tensor& query, const char* name, const Tensor& bank);

  // The address of contiguous elements of this dtype and these sizes.
  void* contiguous(const Tensor& x, const char* name, Dtype dtype, Sizes sizes);

  template <class T>
  ACTION_INLINE T* contiguous(const Tensor& x, const char* name, Sizes sizes) {
    return static_cast<T*>(contiguous(x, name, DtypeOf<T>::value, sizes));
  }

  // The same, or null if the tensor is not given.
  template <class T>
  ACTION_INLINE T* optional(const Tensor& x, const char* name, Sizes sizes) {
    return x.dims == Tensor::kNone ? nullptr : static_cast<T*>(contiguous(x, name, DtypeOf<T>::value, sizes));
  }

  void refuse(const Tensor& x, const char* name, const char* expected, Sizes sizes = {});

  // For what no single tensor shows, such as a number that has to agree with sizes; `text` is the whole message.
  void require(bool holds, const char* text);

 private:
  bool placed(const Tensor& x) const;

  Device device_;
  int32_t device_index_;
  bool passed_ = true;
};

}  // namespace action
