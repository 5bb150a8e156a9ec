// What a similarity has to reach to be among a query's k best: the k-th largest of the group maxima, less twice the
// bound of the difference between two roundings (backends/thresholds.py, which has the numbers below, too). A warp per
// query.
#pragma once

#include "labels.cuh"
#include "online_softmax.cuh"
#include "select.cuh"

namespace action {

constexpr int kHeld = 16;                    // maxima that a lane keeps in registers; further ones are read again
constexpr float kLargestProduct = 0x1p120f;  // from here on, products may leave the range
constexpr float kUnderflow = 0x1p-100f;      // more than all that may be lost below float32's range
constexpr float kLowestLimit = -3.4e38f;     // above kLowest, which stands for rows that are not eligible

/// The limits of all queries.
struct Limits {
  const float* maxima;          // [total, line]
  const float* query_largest;   // [total] a row's largest magnitude, NaN for one with NaN; or null: unit rows
  const float* longest;         // [G] of the bank's rows
  const int64_t* query_labels;  // [total], or null
  float* limits;                // [total], as the next
  int* found;
  int64_t total, queries;
  int line, k, features;
  float error;
};

/// What no product of a query with a bank row exceeds, by the rows' largest magnitudes; NaN for a query with NaN.
/// Squares, which a length would take, may leave float32's range where products do not.
__device__ inline float longest_product(const Limits& p, int64_t row) {
  if (!p.query_largest) return 1.0f;
  const float largest = p.query_largest[row];
  const float product = largest * p.longest[row / p.queries] * static_cast<float>(p.features);
  return largest != largest ? largest : product != product ? INFINITY : product;
}

/// One query's, and whether the buffer has to select for it. Work of one warp.
__device__ inline void find_limit(const Limits& p, int64_t row) {
  const int lane = lane_id();
  const float* maxima = p.maxima + row * p.line;
  int held[kHeld], low = INT32_MAX, high = INT32_MIN;
#pragma unroll
  for (int i = 0; i < kHeld; ++i) {
    const int place = 32 * i + lane;
    held[i] = place < p.line ? ordered(maxima[place]) : INT32_MIN;  // below every number
    if (place < p.line) low = low < held[i] ? low : held[i];
    high = high > held[i] ? high : held[i];
  }
  for (int place = 32 * kHeld + lane; place < p.line; place += 32) {
    const int word = ordered(maxima[place]);
    low = low < word ? low : word;
    high = high > word ? high : word;
  }
  low = __reduce_min_sync(kAllLanes, low);
  high = __reduce_max_sync(kAllLanes, high) + 1;
  // `reach` groups, at least k, are not below `low`; fewer than k reach `high`.
  int reach = p.line;
  while (reach > p.k + p.k / 16 && low + 1 < high) {
    const int middle = (low >> 1) + (high >> 1) + (low & high & 1);
    int above = 0;
#pragma unroll
    for (int i = 0; i < kHeld; ++i) above += held[i] >= middle;
    for (int place = 32 * kHeld + lane; place < p.line; place += 32) above += ordered(maxima[place]) >= middle;
    above = __reduce_add_sync(kAllLanes, above);
    if (above >= p.k) {
      low = middle;
      reach = above;
    } else {
      high = middle;
    }
  }
  if (lane != 0) return;
  const float reached = longest_product(p, row);
  const bool flagged = reached >= kLargestProduct || (p.query_labels && p.query_labels[row] > kLargestLabel);
  const float limit = fmaxf(from_ordered(low) - 2.0f * (p.error * reached + kUnderflow), kLowestLimit);
  // Nothing is selected for a query with NaN.
  p.limits[row] = flagged || reached != reached ? INFINITY : limit;
  p.found[row] = flagged ? -1 : 0;
}

}  // namespace action
