// Rows of any floating type: loads as float32, lengths, sums over lanes.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "../params/tensor.h"

namespace action {

extern __shared__ __align__(128) char shared_memory[];

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr float kSmallestNorm = 1e-12f;

/// Strided rows [G, N, D], strides in elements.
struct Matrix {
  const void* data;
  int64_t stride_g, stride_n, stride_d;
};

/// The kernel for rows of a dtype that has been checked.
template <class Kernel>
Kernel* of_dtype(Dtype dtype, Kernel* float32, Kernel* float16, Kernel* bfloat16) {
  return dtype == Dtype::float16 ? float16 : dtype == Dtype::bfloat16 ? bfloat16 : float32;
}

inline Matrix matrix_of(const Tensor& x) { return {x.data, x.strides[0], x.strides[1], x.strides[2]}; }

__device__ inline float as_float(float x) { return x; }
__device__ inline float as_float(__half x) { return __half2float(x); }
__device__ inline float as_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
__device__ inline T from_float(float x);
template <>
__device__ inline float from_float<float>(float x) {
  return x;
}
template <>
__device__ inline __half from_float<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

/// use(x) with an x of the type of raw rows that are prepared as Out: of any as float32, of bfloat16 also as float16.
template <class Out, class Use>
__device__ inline void with_raw(Dtype raw, Use use) {
  if constexpr (sizeof(Out) == 4) {
    if (raw == Dtype::float16) return use(__half{});
  }
  if constexpr (!std::is_same_v<Out, __nv_bfloat16>) {
    if (raw == Dtype::bfloat16) return use(__nv_bfloat16{});
  }
  use(Out{});
}

/// The sum over groups of neighbouring lanes, known to all of them.
template <int LANES = 32>
__device__ inline float lanes_sum(float x) {
#pragma unroll
  for (int step = LANES / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}

template <int LANES = 32>
__device__ inline float lanes_max(float x) {
#pragma unroll
  for (int step = LANES / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(kAllLanes, x, step));
  return x;
}

/// A row's sum of squares. Squares of huge elements overflow, so a second sum is kept of scaled-down elements.
struct Squares {
  float plain = 0.0f, guarded = 0.0f, largest = 0.0f;

  __device__ void add(float x) {
    const float small = x * 0x1p-80f;
    plain = fmaf(x, x, plain);
    guarded = fmaf(small, small, guarded);
    largest = fmaxf(largest, fabsf(x));
  }

  /// Length of the row whose elements LANES neighbouring lanes have added.
  template <int LANES = 32>
  __device__ float norm() const {
    const bool huge = lanes_max<LANES>(largest) > 1e15f;
    const float sum = lanes_sum<LANES>(huge ? guarded : plain);
    return __fsqrt_rn(sum) * (huge ? 0x1p80f : 1.0f);
  }
};

/// 1 / max(norm, 1e-12); NaN stays NaN.
__device__ inline float unit_factor(float norm) {
  return __fdiv_rn(1.0f, norm <= kSmallestNorm ? kSmallestNorm : norm);
}

}  // namespace action
