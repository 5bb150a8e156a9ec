// Rows of a strided float32, float16 or bfloat16 matrix as float32.
#pragma once

#include <cmath>
#include <cstring>

#include "../params/tensor.h"
#include "simd.h"

namespace action::ACTION_ISA {

// The rows of one group.
struct Rows {
  const char* data;
  Dtype dtype;
  int64_t row_stride, col_stride;  // elements
  int64_t features;

  const char* row(int64_t i) const { return data + i * row_stride * (dtype == Dtype::float32 ? 4 : 2); }
  // Whether the rows are float32 and can be read in place.
  bool direct() const {
    return dtype == Dtype::float32 && (col_stride == 1 || features == 1) && reinterpret_cast<uintptr_t>(data) % 4 == 0;
  }
};

// Of a tensor [G, rows, D] that has been checked.
inline Rows group_rows(const Tensor& x, int64_t group) {
  const int64_t size = x.dtype == Dtype::float32 ? 4 : 2;
  return {static_cast<const char*>(x.data) + group * x.strides[0] * size, x.dtype, x.strides[1], x.strides[2],
          x.sizes[2]};
}

inline float element(const char* row, Dtype dtype, int64_t offset) {
  if (dtype == Dtype::float32) {
    float value;
    std::memcpy(&value, row + 4 * offset, 4);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, row + 2 * offset, 2);
  return dtype == Dtype::float16 ? half_to_float(bits) : bfloat_to_float(bits);
}

// Row i as float32, D values.
inline void read_row(const Rows& rows, int64_t i, float* out) {
  const char* row = rows.row(i);
  const int64_t features = rows.features;
  int64_t d = 0;
  if (rows.direct()) {
    std::memcpy(out, row, 4 * features);
    return;
  }
  if (rows.col_stride == 1 && rows.dtype != Dtype::float32) {
    const uint16_t* bits = reinterpret_cast<const uint16_t*>(row);
    if (reinterpret_cast<uintptr_t>(bits) % 2 == 0) {
      if (rows.dtype == Dtype::float16) {
        for (; d + kWidth <= features; d += kWidth) store(out + d, load_half(bits + d));
      } else {
        for (; d + kWidth <= features; d += kWidth) store(out + d, load_bfloat(bits + d));
      }
    }
  }
  for (; d < features; ++d) out[d] = element(row, rows.dtype, d * rows.col_stride);
}

// The row itself where it can be read in place, else its copy in `buffer`.
inline const float* view_row(const Rows& rows, int64_t i, float* buffer) {
  if (rows.direct()) return reinterpret_cast<const float*>(rows.row(i));
  read_row(rows, i, buffer);
  return buffer;
}

// Prefetches a row that will be read soon.
inline void prefetch_row(const Rows& rows, int64_t i) {
  const int64_t bytes = rows.features * (rows.dtype == Dtype::float32 ? 4 : 2);
  if (rows.col_stride != 1) return;
  for (int64_t offset = 0; offset < bytes; offset += 64) __builtin_prefetch(rows.row(i) + offset);
}

inline float dot(const float* x, const float* y, int64_t n) {
  vf a0{}, a1{}, a2{}, a3{};
  int64_t i = 0;
  for (; i + 4 * kWidth <= n; i += 4 * kWidth) {
    a0 += load(x + i) * load(y + i);
    a1 += load(x + i + kWidth) * load(y + i + kWidth);
    a2 += load(x + i + 2 * kWidth) * load(y + i + 2 * kWidth);
    a3 += load(x + i + 3 * kWidth) * load(y + i + 3 * kWidth);
  }
  for (; i + kWidth <= n; i += kWidth) a0 += load(x + i) * load(y + i);
  float total = sum((a0 + a1) + (a2 + a3));
  for (; i < n; ++i) total += x[i] * y[i];
  return total;
}

// y += a * x
inline void axpy(float a, const float* x, float* y, int64_t n) {
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) store(y + i, load(y + i) + set1(a) * load(x + i));
  for (; i < n; ++i) y[i] += a * x[i];
}

// y += sum_r factor[r] * rows[r]; the sum is completed before it is added, which keeps long sums accurate.
inline void combine(const float* const* rows, const float* factor, int64_t count, float* y, int64_t n) {
  int64_t i = 0;
  for (; i + 2 * kWidth <= n; i += 2 * kWidth) {
    vf a{}, b{};
    for (int64_t r = 0; r < count; ++r) {
      const vf f = set1(factor[r]);
      a += f * load(rows[r] + i);
      b += f * load(rows[r] + i + kWidth);
    }
    store(y + i, load(y + i) + a);
    store(y + i + kWidth, load(y + i + kWidth) + b);
  }
  for (; i < n; ++i) {
    float total = 0;
    for (int64_t r = 0; r < count; ++r) total += factor[r] * rows[r][i];
    y[i] += total;
  }
}

constexpr float kSmallestNorm = 1e-12f;

// 1 / max(|x|, kSmallestNorm). NaN stays NaN.
inline float inverse_norm(float squared) {
  float norm = std::sqrt(squared);
  return 1.0f / (norm < kSmallestNorm ? kSmallestNorm : norm);
}

constexpr float kLargestSquare = 1e36f;  // a larger sum of squares may have overflowed; NaN is not larger

// 1 / |x| of a row of n values, in float64 where the squares of huge ones would overflow.
inline float inverse_norm(const float* x, int64_t n) {
  const float squared = dot(x, x, n);
  if (!(squared > kLargestSquare)) return inverse_norm(squared);
  double total = 0;
  for (int64_t i = 0; i < n; ++i) total += static_cast<double>(x[i]) * x[i];
  return static_cast<float>(1.0 / std::sqrt(total));
}

// Whether the norm itself was used: false where kSmallestNorm took its place, which is a constant in the gradient.
inline bool norm_counts(float inverse) { return !(inverse >= 1.0f / kSmallestNorm); }

constexpr double kLog2e = 1.4426950408889634;
constexpr double kLn2 = 0.6931471805599453;

// A log-sum-exp as a score near it and a small rest: log2 of a probability is (s - score) log2(e) / temp + rest, in
// which nothing large is rounded.
struct Reference {
  float score, rest;
  Reference(double lse, double temp)
      : score(static_cast<float>(lse * temp)), rest(static_cast<float>((score / temp - lse) * kLog2e)) {}
};

}  // namespace action::ACTION_ISA
