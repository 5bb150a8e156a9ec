// A softmax, or the divergence between two, in one pass: sums relative to running maxima.
//
// Maxima are kept as similarities, not logits: (x - max) is then exact wherever it matters, at any temperature.
#pragma once

#include "rows.cuh"

namespace action {

constexpr double kLog2e = 1.4426950408889634;  // exponentials are taken to the base 2

constexpr int kTerms = 12;  // floats per query from which a gradient takes its probabilities, the last three unused

constexpr float kLowest = -3.402823466e38f;  // similarities of bank rows that do not exist

/// 2^x; results below 2^-126 are 0, as in Triton's. To keep them would take four more instructions each.
__device__ inline float exp2_fast(float x) {
#ifdef __CUDA_ARCH__
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#else
  return exp2f(x);
#endif
}

/// A product of two rows times their scales. Rounded here: fused with the subtraction of a maximum, it would differ
/// from pass to pass.
__device__ inline float similarity(float product, float left, float right) { return __fmul_rn(product * left, right); }

/// The sum over the part of a query's similarities seen so far. The factor is log2(e) / temperature.
struct LogSum {
  float max = kLowest, sum = 0.0f;  // of 2^((s - max) factor)

  /// Makes the sum relative to another similarity.
  __device__ void move(float top, float factor) {
    sum *= exp2_fast((max - top) * factor);
    max = top;
  }

  __device__ void add(float s, float factor) { sum += exp2_fast((s - max) * factor); }

  __device__ void merge(LogSum other, float factor) {
    const float top = fmaxf(max, other.max);
    move(top, factor);
    other.move(top, factor);
    sum += other.sum;
  }

  /// Merges the sums of LANES neighbouring lanes that worked on the same row.
  template <int LANES>
  __device__ void merge_lanes(float factor) {
#pragma unroll
    for (int step = 1; step < LANES; step *= 2) {
      merge({__shfl_xor_sync(kAllLanes, max, step), __shfl_xor_sync(kAllLanes, sum, step)}, factor);
    }
  }
};

/// The sums over the part of a query's similarities seen so far, for two softmaxes. Factors are log2(e) / temperature.
struct Divergence {
  float s_max = kLowest, s_sum = 0.0f;  // student: largest similarity, sum of 2^((s - s_max) factor)
  float t_max = kLowest, t_sum = 0.0f;  // teacher
  float s_there = 0.0f;                 // the student's similarity where the teacher's is largest
  float gap = 0.0f;  // sum of the teacher's terms times the difference of both exponents, relative to t_max and s_there

  /// Makes the sums relative to other similarities. When those move, so does every difference in the gap.
  __device__ void move(float s_top, float t_top, float there, float s_factor, float t_factor) {
    const float t_shift = (t_max - t_top) * t_factor, there_shift = (s_there - there) * s_factor;
    const float s_decay = exp2_fast((s_max - s_top) * s_factor), t_decay = exp2_fast(t_shift);
    gap = t_decay == 0.0f ? 0.0f : t_decay * (gap + t_sum * (t_shift - there_shift));
    t_sum *= t_decay;
    s_sum *= s_decay;
    s_max = s_top;
    t_max = t_top;
    s_there = there;
  }

  __device__ void add(float s, float t, float s_factor, float t_factor) {
    const float t_logit = (t - t_max) * t_factor;
    const float p = exp2_fast(t_logit);
    t_sum += p;
    // No weight, no term: the logit of a row that does not exist, or at the smallest temperatures, is infinite.
    gap = p == 0.0f ? gap : fmaf(p, t_logit - (s - s_there) * s_factor, gap);
    s_sum += exp2_fast((s - s_max) * s_factor);
  }

  __device__ void merge(Divergence other, float s_factor, float t_factor) {
    const float s_top = fmaxf(s_max, other.s_max), t_top = fmaxf(t_max, other.t_max);
    const float there = other.t_max > t_max ? other.s_there : s_there;
    move(s_top, t_top, there, s_factor, t_factor);
    other.move(s_top, t_top, there, s_factor, t_factor);
    s_sum += other.s_sum;
    t_sum += other.t_sum;
    gap += other.gap;
  }

  /// Merges the sums of LANES neighbouring lanes that worked on the same row.
  template <int LANES>
  __device__ void merge_lanes(float s_factor, float t_factor) {
#pragma unroll
    for (int step = 1; step < LANES; step *= 2) {
      Divergence other;
      other.s_max = __shfl_xor_sync(kAllLanes, s_max, step);
      other.s_sum = __shfl_xor_sync(kAllLanes, s_sum, step);
      other.t_max = __shfl_xor_sync(kAllLanes, t_max, step);
      other.t_sum = __shfl_xor_sync(kAllLanes, t_sum, step);
      other.s_there = __shfl_xor_sync(kAllLanes, s_there, step);
      other.gap = __shfl_xor_sync(kAllLanes, gap, step);
      merge(other, s_factor, t_factor);
    }
  }
};

}  // namespace action
