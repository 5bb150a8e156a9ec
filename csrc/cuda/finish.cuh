// Finishing gradients: partial sums are added in a fixed order, the radial part is removed, and the result divided by
// the row's length. A warp per row.
#pragma once

#include "rows.cuh"

namespace action {

/// A gradient in parts, and the raw rows.
struct Finish {
  Matrix x;
  const float* partial;  // [parts, G, N, width]
  const float* factor;   // one number, or null
  float* out;            // [G, N, D]
  int64_t rows, total;
  Dtype dtype;  // of x
  int parts, features, width;
  float constant;
  bool normalize;
};

/// A row of the gradient, whose raw rows are T. Work of one warp.
template <class T>
__device__ void finish_row(const Finish& p, int64_t line) {
  const int lane = threadIdx.x % 32;
  const T* x = static_cast<const T*>(p.x.data) + line / p.rows * p.x.stride_g + line % p.rows * p.x.stride_n;
  const float* partial = p.partial + line * p.width;
  float* out = p.out + line * p.features;
  float factor = 1.0f;
  bool counted = false;
  if (p.normalize) {
    Squares squares;
    for (int i = lane; i < p.features; i += 32) squares.add(as_float(x[i * p.x.stride_d]));
    const float norm = squares.norm();
    factor = unit_factor(norm);
    counted = norm > kSmallestNorm;  // a clamped norm is a constant: nothing is radial
  }
  const float scale = p.constant, boost = p.factor ? *p.factor : 1.0f;
  float radial = 0.0f;
  for (int i = lane; i < p.features; i += 32) {
    float grad = 0.0f;
    for (int part = 0; part < p.parts; ++part) grad += partial[int64_t{part} * p.total * p.width + i];
    grad = grad * scale * boost;
    out[i] = grad;
    if (counted) radial = fmaf(as_float(x[i * p.x.stride_d]) * factor, grad, radial);
  }
  if (!p.normalize) return;
  radial = lanes_sum(radial);
  for (int i = lane; i < p.features; i += 32) {
    const float unit = as_float(x[i * p.x.stride_d]) * factor;
    out[i] = (out[i] - (counted ? radial * unit : 0.0f)) * factor;
  }
}

}  // namespace action
