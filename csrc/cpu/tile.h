// The matrix products. A *panel* holds kWidth * NV rows of one side transposed, so that a vector's lanes are rows; the
// other side is *streamed* row by row. Scores of a tile come out as [stream row][panel lane], the layout
// in which every softmax is lane by lane, and weights of that layout go straight into the product back to features.
#pragma once

#include <type_traits>

#include "rows.h"

namespace action::ACTION_ISA {

template <int NV>
constexpr int kLanes = NV * kWidth;

constexpr int64_t kMostTileRows = 120;

// Rows first .. first + count (count <= lanes; the others are 0) as panel[d][lane]. `inverse` gets 1 / norm per lane,
// or 1 without normalising; with `scale` the panel's rows are multiplied by it. `row` holds D floats.
template <int NV>
inline void pack_panel(const Rows& rows, int64_t first, int64_t count, bool normalize, bool scale, float* row,
                       float* panel, float* inverse) {
  constexpr int L = kLanes<NV>;
  const int64_t features = rows.features;
  if (count < L) std::memset(panel, 0, sizeof(float) * L * features);
  for (int lane = 0; lane < L; ++lane) inverse[lane] = 1.0f;
  for (int lane = 0; lane < count; ++lane) {
    const float* x = view_row(rows, first + lane, row);
    inverse[lane] = normalize ? inverse_norm(x, features) : 1.0f;
    const float factor = scale ? inverse[lane] : 1.0f;
    for (int64_t d = 0; d < features; ++d) panel[d * L + lane] = x[d] * factor;
  }
}

// A tile of stream rows in `buffer` [count][D], scaled to unit length if `inverse` is given (row first + i times
// inverse[first + i], bit for bit what pack_panel makes of it). One copy from end to end is cheaper than several
// sweeps of the products over memory that is not in the cache yet, and serves every dtype and stride.
inline void open_stream(const Rows& rows, int64_t first, int64_t count, const float* inverse, float* buffer) {
  const int64_t features = rows.features;
  if (!inverse && rows.direct() && rows.row_stride == features) {
    std::memcpy(buffer, rows.row(first), sizeof(float) * count * features);
    return;
  }
  for (int64_t i = 0; i < count; ++i) {
    float* out = buffer + i * features;
    read_row(rows, first + i, out);
    if (!inverse) continue;
    const float scale = inverse[first + i];
    for (int64_t d = 0; d < features; ++d) out[d] *= scale;
  }
}

// The same rows in place where that can be, for a tile that is not gone over often.
inline const float* view_stream(const Rows& rows, int64_t first, int64_t count, float* buffer) {
  if (rows.direct() && rows.row_stride == rows.features) return reinterpret_cast<const float*>(rows.row(first));
  open_stream(rows, first, count, nullptr, buffer);
  return buffer;
}

// The register blocks below are not inlined: there they would lose address registers to the caller.
template <int R, int NV>
__attribute__((noinline)) void score_block(const float* rows, const float* panel, int64_t features, const float* scale,
                                           float* out, int64_t out_stride) {
  vf acc[R][NV] = {};
  for (int64_t d = 0; d < features; ++d) {
    vf b[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) b[v] = load(panel + d * kLanes<NV> + v * kWidth);
#pragma GCC unroll 24
    for (int r = 0; r < R; ++r) {
      vf a = set1(rows[r * features + d]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[r][v] += a * b[v];
    }
  }
#pragma GCC unroll 24
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v)
      store(out + r * out_stride + v * kWidth, scale ? acc[r][v] * set1(scale[r]) : acc[r][v]);
}

// Calls kernel(std::integral_constant<int, R>, first) for register blocks of R <= kBlock rows that cover `count` rows
// as evenly as possible: in a block with few rows, multipliers would wait for one another.
template <int R = kBlock, typename Kernel>
inline void block_of(int64_t rows, int64_t first, Kernel&& kernel) {
  if (rows == R) {
    kernel(std::integral_constant<int, R>{}, first);
  } else if constexpr (R > 1) {
    block_of<R - 1>(rows, first, kernel);
  }
}

template <typename Kernel>
inline void for_blocks(int64_t count, Kernel&& kernel) {
  int64_t blocks = (count + kBlock - 1) / kBlock, first = 0;
  for (; blocks > 0; --blocks) {
    const int64_t rows = (count - first + blocks - 1) / blocks;
    block_of(rows, first, kernel);
    first += rows;
  }
}

// out[j][lane] = <stream row j, panel row lane> * scale[j] (scale may be null).
template <int NV>
void score(const float* rows, int64_t count, const float* panel, int64_t features, const float* scale, float* out,
           int64_t out_stride) {
  for_blocks(count, [&](auto size, int64_t j) {
    score_block<size.value, NV>(rows + j * features, panel, features, scale ? scale + j : nullptr, out + j * out_stride,
                                out_stride);
  });
}

// A tile of `count` stream rows for accumulate(): feature block after feature block, each [row][feature of the block],
// so that the product reads it from end to end. `out` holds packed_floats(count, features).
inline int64_t packed_floats(int64_t count, int64_t features) { return count * features + kWidth + kBlock; }

inline void pack_features(const float* rows, int64_t count, int64_t features, float* out) {
  for_blocks(features, [&](auto size, int64_t d) {
    constexpr int C = size.value;
    float* block = out + count * d;
    const float* row = rows + d;
    for (int64_t j = 0; j < count; ++j, row += features) std::memcpy(block + j * C, row, sizeof(float) * C);
  });
}

template <int C, int NV>
__attribute__((noinline)) void accumulate_block(const float* packed, int64_t count, const float* weights,
                                                int64_t weight_stride, float* out) {
  vf acc[C][NV] = {};
  for (int64_t j = 0; j < count; ++j) {
    vf w[NV];
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) w[v] = load(weights + j * weight_stride + v * kWidth);
#pragma GCC unroll 24
    for (int c = 0; c < C; ++c) {
      vf a = set1(packed[j * C + c]);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) acc[c][v] += a * w[v];
    }
  }
#pragma GCC unroll 24
  for (int c = 0; c < C; ++c)
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      float* p = out + c * kLanes<NV> + v * kWidth;
      store(p, load(p) + acc[c][v]);
    }
}

// out[d][lane] += sum_j weights[j][lane] * packed row j [d]; a tile is summed before it is added, which keeps long sums
// accurate.
template <int NV>
void accumulate(const float* packed, int64_t count, const float* weights, int64_t weight_stride, int64_t features,
                float* out) {
  for_blocks(features, [&](auto size, int64_t d) {
    accumulate_block<size.value, NV>(packed + count * d, count, weights, weight_stride, out + d * kLanes<NV>);
  });
}

// The same, bit for bit, for a few queries, whose panel would be all but empty: from the stream rows themselves, a
// vector's lanes are features. out[q][d] += sum_j weights[j][q] * row j [d].
inline void accumulate_few(const float* rows, int64_t count, const float* weights, int64_t weight_stride, int64_t few,
                           int64_t features, float* out) {
  const float* row[kMostTileRows];
  float factor[kMostTileRows];
  for (int64_t j = 0; j < count; ++j) row[j] = rows + j * features;
  for (int64_t q = 0; q < few; ++q) {
    for (int64_t j = 0; j < count; ++j) factor[j] = weights[j * weight_stride + q];
    combine(row, factor, count, out + q * features, features);
  }
}

// Gradient in raw rows from the gradient in unit rows: (g - x <x, g>) / |x|; written to rows first .. first + count of
// grad [rows, D].
template <int NV>
inline void unpack_gradient(const float* out, const float* panel, const float* inverse, bool normalize,
                            int64_t features, int64_t first, int64_t count, float* grad) {
  constexpr int L = kLanes<NV>;
  alignas(64) float along[L] = {};
  if (normalize) {
    for (int v = 0; v < NV; ++v) {
      vf total{};
      for (int64_t d = 0; d < features; ++d) total += load(out + d * L + v * kWidth) * load(panel + d * L + v * kWidth);
      store(along + v * kWidth, total);
    }
    for (int lane = 0; lane < L; ++lane)
      if (!norm_counts(inverse[lane])) along[lane] = 0;
  }
  for (int lane = 0; lane < count; ++lane) {
    float* row = grad + (first + lane) * features;
    for (int64_t d = 0; d < features; ++d)
      row[d] = (out[d * L + lane] - along[lane] * panel[d * L + lane]) * inverse[lane];
  }
}

// Stream rows of a tile: few enough that a tile stays in the second-level cache, a multiple of the register block.
inline int64_t tile_rows(int64_t features, int64_t available) {
  int64_t rows = 32768 / (features > 0 ? features : 1) / kBlock * kBlock;
  rows = rows > kMostTileRows ? kMostTileRows : rows < kBlock ? kBlock : rows;
  return rows < available ? rows : available;
}

}  // namespace action::ACTION_ISA
