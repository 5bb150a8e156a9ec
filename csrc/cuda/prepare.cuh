// The step that comes first: all rows of a call, and what kernels behind it begin with.
#pragma once

#include "call.cuh"
#include "placement.cuh"
#include "products.cuh"
#include "splits.cuh"

namespace action {

constexpr int kMostSets = 3;  // queries, or two sets of them, and a bank
constexpr int kMostFills = 3;
constexpr int kMeasured = 2048;  // elements of an upstream gradient that a block measures

struct RowSet {
  Matrix x;
  void* data;      // [G, rows, width]
  float* scale;    // [G, scale_rows]
  float* inverse;  // [G, rows] 1 / max(|x|, 1e-12), negative where the norm did not count; or null
  float* largest;  // [G, rows] of a row's magnitudes, NaN for one with NaN; or null
  Placement placement;
  const int64_t* labels;  // [G, rows], or null
  float* narrow_labels;   // [G, scale_rows]
  int64_t rows, total, scale_rows;
  unsigned blocks;  // none where the set is not given
  Dtype dtype;
};

/// Memory that kernels behind this one begin with.
struct Fill {
  int* data;
  int64_t count;
  int value;
};

/// An upstream gradient that is measured.
struct Upstream {
  const float* data;  // [count]
  float* largest;     // [blocks]
  int64_t count;
  unsigned blocks;
};

inline Upstream upstream_of(Workspace& memory, const float* data, int64_t count) {
  const int64_t blocks = ceil_div(count, kMeasured);
  return {data, memory.take<float>(blocks), count, static_cast<unsigned>(blocks)};
}

struct Prepare {
  RowSet sets[kMostSets];
  Upstream upstream;
  Fill fills[kMostFills];
  int features, width;
  bool normalize, tf32;
};

/// Rows [G, rows, D], to become data and scales.
inline RowSet row_set(const Tensor& x, void* data, float* scale, int64_t scale_rows) {
  RowSet set{};
  set.x = matrix_of(x);
  set.data = data;
  set.scale = scale;
  set.rows = x.sizes[1];
  set.total = x.sizes[0] * x.sizes[1];
  set.scale_rows = scale_rows;
  set.dtype = x.dtype;
  return set;
}

/// Prepares rows of `out`, which are float32, or as they were.
void prepare(Queue& queue, Prepare call, Dtype out);

}  // namespace action
