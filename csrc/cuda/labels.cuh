// Labels as the passes over the bank compare them: in one instruction for a pair of rows.
//
// As float32, which has every whole number up to 2^24, a bank row of no class can be NaN: it is neither less nor more
// than any label, as little as one of the query's own class. A larger label is infinite there, of another class than
// any that fits. A query whose own label is larger has NaN: no bank row is eligible for it in the passes, and it is
// flagged.
#pragma once

#include <cmath>
#include <cstdint>

namespace action {

constexpr int64_t kLargestLabel = 1 << 24;

/// A label of 64 bits; `none` where it is that of no class, `larger` where it is too large.
__device__ inline float narrow(int64_t label, float none, float larger) {
  return label < 0 ? none : label <= kLargestLabel ? static_cast<float>(label) : larger;
}

/// A bank row's label.
__device__ inline float narrow_in_bank(int64_t label) { return narrow(label, NAN, INFINITY); }

/// A query's label. That of no class is -1: no bank row has it.
__device__ inline float narrow_own(int64_t label) { return narrow(label, -1.0f, NAN); }

/// Whether a bank row of this label is of another class than the query; a bank row of no class is not.
__device__ inline bool of_another_class(float label, float own) { return label < own || label > own; }

}  // namespace action
