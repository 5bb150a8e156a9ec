// What happens once per query between the passes: merging shares of a scan, and the terms that gradients need.
#include "launch.cuh"
#include "online_softmax.cuh"

namespace action {
namespace {

constexpr int kBlockThreads = 128;
constexpr float kLog2e = 1.44269504088896340736f;
constexpr float kLn2 = 0.69314718055994530942f;

struct Merge {
  const float* statistics;  // [5, shares, total]
  float* kl;                // [total], as the next two
  double* student_lse;
  double* teacher_lse;
  int64_t shares, total;
  double student_temp, teacher_temp;
};

__global__ void __launch_bounds__(kBlockThreads) merge(Merge p) {
  const int64_t row = int64_t{blockIdx.x} * kBlockThreads + threadIdx.x;
  if (row >= p.total) return;
  const float s_factor = static_cast<float>(1.4426950408889634 / p.student_temp);
  const float t_factor = static_cast<float>(1.4426950408889634 / p.teacher_temp);
  const int64_t step = p.shares * p.total;
  Divergence all;
  for (int64_t share = 0; share < p.shares; ++share) {
    const float* place = p.statistics + share * p.total + row;
    const Divergence part{place[0], place[step], place[2 * step], place[3 * step], place[4 * step]};
    if (share == 0) {
      all = part;
    } else {
      all.merge(part, s_factor, t_factor);
    }
  }
  const float s_log = logf(all.s_sum), t_log = logf(all.t_sum);
  p.kl[row] = all.gap * kLn2 / all.t_sum + (s_log - t_log);
  p.student_lse[row] = static_cast<double>(all.s_max) / p.student_temp + s_log;
  p.teacher_lse[row] = static_cast<double>(all.t_max) / p.teacher_temp + t_log;
}

struct Terms {
  const float* student_scale;  // [G, padded], as the next
  const float* teacher_scale;
  const double* student_lse;  // [G, N], as the next
  const double* teacher_lse;
  const float* grad_kl;  // or null: the student's direction alone is wanted
  const float* kl;
  const float* largest;  // one number, at least every |grad_kl|
  float* terms;          // [G, padded, 8]
  float* factor;         // one number: what sums have to be multiplied by
  int64_t queries, padded, total;
  double student_temp, teacher_temp;
};

/// log2 p = (similarity - center) log2(e) / temp - rest, without rounding the log-sum-exp.
__device__ void center(double lse, double temp, float& middle, float& rest) {
  middle = static_cast<float>(lse * temp);
  rest = static_cast<float>((lse - static_cast<double>(middle) / temp) * 1.4426950408889634);
}

__global__ void __launch_bounds__(kBlockThreads) terms(Terms p) {
  const int64_t row = int64_t{blockIdx.x} * kBlockThreads + threadIdx.x;
  if (row >= p.total) return;
  const int64_t place = row / p.queries * p.padded + row % p.queries;
  float* out = p.terms + place * 8;
  out[0] = p.student_scale[place];
  center(p.student_lse[row], p.student_temp, out[1], out[2]);
  out[3] = p.teacher_scale[place];
  center(p.teacher_lse[row], p.teacher_temp, out[4], out[5]);
  out[6] = out[7] = 0.0f;
  if (!p.grad_kl) return;
  // Weights stay of order 1: the power of two of the largest upstream gradient goes in at the end.
  int exponent = 0;
  const float largest = *p.largest;
  if (largest > 0.0f && largest <= 3.4028235e38f) frexpf(largest, &exponent);
  out[6] = ldexpf(p.grad_kl[row], -exponent);
  out[7] = p.kl[row] * kLog2e;
  if (row == 0) *p.factor = ldexpf(1.0f, exponent);
}

unsigned blocks(int64_t rows) { return static_cast<unsigned>((rows + kBlockThreads - 1) / kBlockThreads); }

}  // namespace
}  // namespace action

using namespace action;

ACTION_EXPORT int action_merge(const float* statistics, int64_t shares, int64_t total, double student_temp,
                               double teacher_temp, float* kl, double* student_lse, double* teacher_lse,
                               void* stream) {
  const Merge p{statistics, kl, student_lse, teacher_lse, shares, total, student_temp, teacher_temp};
  return launch(merge, blocks(total), kBlockThreads, 0, stream, p);
}

ACTION_EXPORT int action_terms(const float* student_scale, const float* teacher_scale, const double* student_lse,
                               const double* teacher_lse, const float* grad_kl, const float* kl, const float* largest,
                               float* terms_out, float* factor, int64_t groups, int64_t queries, int64_t padded,
                               double student_temp, double teacher_temp, void* stream) {
  const Terms p{student_scale, teacher_scale, student_lse, teacher_lse, grad_kl, kl, largest, terms_out, factor,
                queries, padded, groups * queries, student_temp, teacher_temp};
  return launch(terms, blocks(p.total), kBlockThreads, 0, stream, p);
}
