// A tensor as it crosses the border between Python and native code: one value with everything that a kernel relies on.
#pragma once

#include <cstdint>

#include "inline.h"

namespace action {

// The dtypes that kernels take; `other` stands for all the rest.
enum class Dtype : int32_t { float32, float16, bfloat16, float64, int64, int32, uint8, other };

inline const char* name_of(Dtype dtype) {
  constexpr const char* names[] = {"float32", "float16", "bfloat16", "float64",
                                   "int64",   "int32",   "uint8",    "another dtype"};
  return names[static_cast<int>(dtype)];
}

enum class Device : int32_t { cpu, cuda, other };

struct Tensor {
  static constexpr int kMostDims = 4;  // further sizes and strides are left out
  static constexpr int kNone = -1;     // dims of a tensor that is not given: None in Python

  void* data;
  Dtype dtype;
  Device device;
  int32_t device_index;
  int32_t dims;
  int64_t sizes[kMostDims];
  int64_t strides[kMostDims];  // in elements

  ACTION_INLINE bool given() const { return dims != kNone; }
};

constexpr Tensor kNoTensor{nullptr, Dtype::other, Device::other, 0, Tensor::kNone, {}, {}};

}  // namespace action
