// The selection in its final order: the best k of a query's keys, sorted by a bitonic network. Work of a block.
#pragma once

#include "../params/checks.h"
#include "select.cuh"

namespace action {

constexpr int kSorted = 4096;  // keys of a query that are sorted in shared memory

/// Where a selection goes.
struct Selected {
  float* similarity;  // [total, k]; -inf behind the last key
  int64_t* index;     // [total, k]; -1 there
  int64_t k;
};

/// Of a selection from a bank. Keys of a query are counted in 31 bits.
inline Selected selected_of(Checks& check, const Tensor& similarity, const Tensor& index, const Shape& shape) {
  const int64_t g = shape.groups, n = shape.queries, k = check.size(index, "index", 2, 3);
  check.require(k <= 1 << 20 || shape.rows < 1 << 30,
                "index must have no more than 2^20 places where the bank has 2^30 rows or more");
  return {check.contiguous<float>(similarity, "similarity", {g, n, k}),
          check.contiguous<int64_t>(index, "index", {g, n, k}), k};
}

/// Puts keys into descending order; all threads may read them afterwards. Every comparison moves the better key to the
/// front, so that keys beyond the end, which would be the worst, never come into play.
__device__ inline void sort_keys(int64_t* keys, int count) {
  int half = 1;
  while (2 * half < count) half *= 2;
  for (int width = 2; width <= 2 * half; width *= 2) {
    for (int step = width / 2; step > 0; step /= 2) {
      __syncthreads();
      for (int i = threadIdx.x; i < half; i += blockDim.x) {
        const int low = 2 * i - (i & (step - 1)), high = 2 * step == width ? low ^ (width - 1) : low + step;
        if (high >= count) continue;
        const int64_t a = keys[low], b = keys[high];
        if (a < b) {
          keys[low] = b;
          keys[high] = a;
        }
      }
    }
  }
  __syncthreads();
}

/// Writes a query's selection from its sorted keys.
__device__ inline void write_selected(const Selected& out, int64_t row, const int64_t* keys, int count) {
  for (int64_t i = threadIdx.x; i < out.k; i += blockDim.x) {
    const int64_t key = i < count ? keys[i] : kEmptyKey;
    const bool empty = key == kEmptyKey;
    out.similarity[row * out.k + i] = empty ? -INFINITY : key_similarity(key);
    out.index[row * out.k + i] = empty ? -1 : key_index(key);
  }
}

/// Leaves the best k of a line's keys, some of which may be empty, at its front, and empty ones behind them up to k.
/// Work of one warp.
__device__ inline void shorten(int64_t* keys, int count, int k) {
  const int kept = keep_best(keys, keep_from(keys, count, keys, kEmptyKey + 1), keys, k, k, 0.0f).count;
  for (int i = kept + lane_id(); i < k; i += 32) keys[i] = kEmptyKey;
}

/// Writes the selection of a query from its line of keys. More than kSorted of them lose their order.
__device__ inline void order_line(const Selected& out, int64_t row, int64_t* keys, int count) {
  int64_t* sorted = reinterpret_cast<int64_t*>(shared_memory);
  __syncthreads();  // nobody reads shared memory any more
  if (count > kSorted) {
    sorted = keys;
  } else {
    for (int i = threadIdx.x; i < count; i += blockDim.x) sorted[i] = keys[i];
  }
  sort_keys(sorted, count);
  write_selected(out, row, sorted, count);
}

}  // namespace action
