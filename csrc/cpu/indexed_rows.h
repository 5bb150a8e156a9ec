// Similarities of queries with the bank rows that an index names, and their gradients.
#pragma once

#include "../params/checks.h"
#include "parallel.h"
#include "rows.h"
#include "variant.h"

namespace action::ACTION_ISA {

// Gradient of indexed similarities: their weights are given (`grad_similarity`), or those of the InfoNCE loss.
struct IndexedGradient {
  Shape shape;
  Tensor query, positive, bank;
  bool normalize;
  int64_t k;
  const int64_t* index = nullptr;          // [G, N, k]
  const float* grad_similarity = nullptr;  // [G, N, k], or nullptr: InfoNCE with grad_loss, lse and temp
  const float* grad_loss = nullptr;        // [G, N]
  const double* lse = nullptr;             // [G, N]
  double temp = 1.0;
  float *query_grad = nullptr, *positive_grad = nullptr;  // [G, N, D], or nullptr: not wanted
  float* bank_grad = nullptr;                             // [G, M, D], or nullptr
};

void indexed_gradient(const IndexedGradient&, Resources);

// <x, y> and <y, y> in one sweep over y.
inline void dot_and_square(const float* x, const float* y, int64_t n, float& product, float& square) {
  vf p0{}, p1{}, q0{}, q1{};
  int64_t i = 0;
  for (; i + 2 * kWidth <= n; i += 2 * kWidth) {
    vf y0 = load(y + i), y1 = load(y + i + kWidth);
    p0 += load(x + i) * y0;
    p1 += load(x + i + kWidth) * y1;
    q0 += y0 * y0;
    q1 += y1 * y1;
  }
  for (; i + kWidth <= n; i += kWidth) {
    vf y0 = load(y + i);
    p0 += load(x + i) * y0;
    q0 += y0 * y0;
  }
  product = sum(p0 + p1);
  square = sum(q0 + q1);
  for (; i < n; ++i) {
    product += x[i] * y[i];
    square += y[i] * y[i];
  }
}

// Similarity of unit row x with raw row y; `inverse` gets 1 / |y| (1 without normalising).
inline float similarity(const float* x, const float* y, int64_t n, bool normalize, float& inverse) {
  inverse = 1.0f;
  if (!normalize) return dot(x, y, n);
  float product, square;
  dot_and_square(x, y, n, product, square);
  inverse = square > kLargestSquare ? inverse_norm(y, n) : inverse_norm(square);
  return product * inverse;
}

// Prefetches the bank row of the entry that follows entry n of an index list.
inline void prefetch_next(const Rows& bank, int64_t rows, const int64_t* index, int64_t n, int64_t k) {
  if (n + 1 < k && index[n + 1] >= 0 && index[n + 1] < rows) prefetch_row(bank, index[n + 1]);
}

// Row i as a unit row (as it is without normalising) in `out`; returns 1 / norm.
inline float unit_row(const Rows& rows, int64_t i, bool normalize, float* out) {
  read_row(rows, i, out);
  if (!normalize) return 1.0f;
  const float inverse = inverse_norm(out, rows.features);
  for (int64_t d = 0; d < rows.features; ++d) out[d] *= inverse;
  return inverse;
}

// grad = (g - x <x, g>) * inverse, the gradient in the raw row of unit row x.
inline void project(const float* g, const float* x, float inverse, bool normalize, int64_t n, float* grad) {
  const float along = normalize && norm_counts(inverse) ? dot(x, g, n) : 0.0f;
  for (int64_t d = 0; d < n; ++d) grad[d] = (g[d] - along * x[d]) * inverse;
}

}  // namespace action::ACTION_ISA
