// Labels as the passes over the bank compare them: in one instruction for a pair of rows.
//
// As float32, which has every whole number up to 2^24, a row of no class can be NaN: it is neither less nor more than
// any label, as little as one of the query's own class. Where the bank has a larger label, limits are not used.
#pragma once

#include <cmath>
#include <cstdint>

namespace action {

constexpr int64_t kLargestLabel = 1 << 24;

/// A label of 64 bits; `none` where it is too large, or that of no class.
__device__ inline float narrow(int64_t label, float none) {
  return label >= 0 && label <= kLargestLabel ? static_cast<float>(label) : none;
}

/// A query's label. One that is too large, or of no class, is -1: no bank row has it.
__device__ inline float narrow_own(int64_t label) { return narrow(label, -1.0f); }

/// Whether a bank row of this label is of another class than the query; a bank row of no class is not.
__device__ inline bool of_another_class(float label, float own) { return label < own || label > own; }

}  // namespace action
