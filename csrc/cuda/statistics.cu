// What happens once per query between the passes: merging the splits of a bank, and the terms that gradients need.
#include "launch.cuh"
#include "library.cuh"
#include "online_softmax.cuh"

namespace action {
namespace {

constexpr int kBlockThreads = 128;
constexpr float kLn2 = 0.69314718055994530942f;

struct Merge {
  const float* statistics;  // [6, num_splits, total]
  float* kl;                // [total], as those below
  double* logit_gap;
  double* student_lse;
  double* teacher_lse;
  int64_t num_splits, total;
  double student_temp, teacher_temp;
};

__global__ void __launch_bounds__(kBlockThreads) merge(Merge p) {
  const int64_t row = int64_t{blockIdx.x} * kBlockThreads + threadIdx.x;
  if (row >= p.total) return;
  const float s_factor = static_cast<float>(kLog2e / p.student_temp);
  const float t_factor = static_cast<float>(kLog2e / p.teacher_temp);
  const int64_t step = p.num_splits * p.total;
  Divergence all;
  for (int64_t split = 0; split < p.num_splits; ++split) {
    const float* place = p.statistics + split * p.total + row;
    const Divergence part{place[0], place[step], place[2 * step], place[3 * step], place[5 * step], place[4 * step]};
    if (split == 0) {
      all = part;
    } else {
      all.merge(part, s_factor, t_factor);
    }
  }
  const float s_log = logf(all.s_sum), t_log = logf(all.t_sum), divergence = all.gap * kLn2 / all.t_sum;
  const double s_top = static_cast<double>(all.s_max) / p.student_temp;
  const double t_top = static_cast<double>(all.t_max) / p.teacher_temp;
  const double s_there = static_cast<double>(all.s_there) / p.student_temp;
  p.kl[row] = static_cast<float>(divergence + (s_log - t_log) + (s_top - s_there));
  p.logit_gap[row] = divergence + (t_top - s_there);
  p.student_lse[row] = s_top + s_log;
  p.teacher_lse[row] = t_top + t_log;
}

struct MergeOne {
  const float* statistics;  // [2, num_splits, total]
  double* lse;              // [total]
  int64_t num_splits, total;
  double temp;
};

__global__ void __launch_bounds__(kBlockThreads) merge_one(MergeOne p) {
  const int64_t row = int64_t{blockIdx.x} * kBlockThreads + threadIdx.x;
  if (row >= p.total) return;
  const float factor = static_cast<float>(kLog2e / p.temp);
  const int64_t step = p.num_splits * p.total;
  LogSum all{p.statistics[row], p.statistics[step + row]};
  for (int64_t split = 1; split < p.num_splits; ++split) {
    const float* place = p.statistics + split * p.total + row;
    all.merge({place[0], place[step]}, factor);
  }
  p.lse[row] = static_cast<double>(all.max) / p.temp + logf(all.sum);
}

struct Terms {
  const float* student_scale;  // [G, padded], as the next
  const float* teacher_scale;  // or null: there is no teacher
  const double* student_lse;   // [G, N], as the next
  const double* teacher_lse;
  const float* upstream;  // or null: the student's gradient alone is wanted
  const double* logit_gap;
  const float* largest;  // one number, at least every |upstream|
  float* terms;          // [G, padded, kTerms]
  float* factor;         // one number: what sums have to be multiplied by
  int64_t queries, padded, total;
  double student_temp, teacher_temp;
};

/// A logit as a similarity near it and a rest: log2 p = (similarity - center) log2(e) / temp - rest, in which no
/// log-sum-exp is rounded.
__device__ void center(double lse, double temp, float& middle, float& rest) {
  middle = static_cast<float>(lse * temp);
  rest = static_cast<float>((lse - static_cast<double>(middle) / temp) * kLog2e);
}

__global__ void __launch_bounds__(kBlockThreads) terms(Terms p) {
  const int64_t row = int64_t{blockIdx.x} * kBlockThreads + threadIdx.x;
  if (row >= p.total) return;
  const int64_t place = row / p.queries * p.padded + row % p.queries;
  float* out = p.terms + place * kTerms;
  for (int i = 0; i < kTerms; ++i) out[i] = 0.0f;
  out[0] = p.student_scale[place];
  center(p.student_lse[row], p.student_temp, out[1], out[2]);
  if (p.teacher_scale) {
    out[3] = p.teacher_scale[place];
    center(p.teacher_lse[row], p.teacher_temp, out[4], out[5]);
  }
  if (!p.upstream) return;
  // Weights stay of order 1: the power of two of the largest upstream gradient is applied at the end.
  int exponent = 0;
  const float largest = *p.largest;
  if (largest > 0.0f && largest <= 3.4028235e38f) frexpf(largest, &exponent);
  out[6] = ldexpf(p.upstream[row], -exponent);
  // The student's logit that lies the mean gap below the teacher's center.
  if (p.teacher_scale)
    center(static_cast<double>(out[4]) / p.teacher_temp - p.logit_gap[row], p.student_temp, out[7], out[8]);
  if (row == 0) *p.factor = ldexpf(1.0f, exponent);
}

unsigned blocks(int64_t rows) { return static_cast<unsigned>((rows + kBlockThreads - 1) / kBlockThreads); }

#define MERGE_SPLITS_FIELDS(FIELD)                                        \
  FIELD(Tensor, statistics) /* [6, num_splits, G, N] float32 */           \
  FIELD(double, student_temp)                                             \
  FIELD(double, teacher_temp)                                             \
  FIELD(Tensor, kl)          /* [G, N] float32, a result like the next */ \
  FIELD(Tensor, logit_gap)   /* [G, N] float64 */                         \
  FIELD(Tensor, student_lse) /* [G, N] float64 */                         \
  FIELD(Tensor, teacher_lse) /* [G, N] float64 */
ACTION_PARAMS(MergeSplitsParams, MERGE_SPLITS_FIELDS)

int32_t merge_splits(const MergeSplitsParams& p, void* stream) {
  Checks check(kDevice, p.statistics);
  const int64_t splits = check.size(p.statistics, "statistics", 1, 4);
  const int64_t g = check.size(p.kl, "kl", 0, 2), n = check.size(p.kl, "kl", 1, 2);
  const Merge call{check.contiguous<float>(p.statistics, "statistics", {6, splits, g, n}),
                   check.contiguous<float>(p.kl, "kl", {g, n}),
                   check.contiguous<double>(p.logit_gap, "logit_gap", {g, n}),
                   check.contiguous<double>(p.student_lse, "student_lse", {g, n}),
                   check.contiguous<double>(p.teacher_lse, "teacher_lse", {g, n}),
                   splits,
                   g * n,
                   p.student_temp,
                   p.teacher_temp};
  return check.passed() ? enqueue(merge, blocks(call.total), kBlockThreads, 0, stream, call) : check.status();
}

#define MERGE_ONE_FIELDS(FIELD)                                 \
  FIELD(Tensor, statistics) /* [2, num_splits, G, N] float32 */ \
  FIELD(double, temp)                                           \
  FIELD(Tensor, lse) /* [G, N] float64, the result */
ACTION_PARAMS(MergeOneParams, MERGE_ONE_FIELDS)

int32_t merge_one_launcher(const MergeOneParams& p, void* stream) {
  Checks check(kDevice, p.statistics);
  const int64_t splits = check.size(p.statistics, "statistics", 1, 4);
  const int64_t g = check.size(p.lse, "lse", 0, 2), n = check.size(p.lse, "lse", 1, 2);
  check.require(splits > 0, "statistics must be of one split or more");
  const MergeOne call{check.contiguous<float>(p.statistics, "statistics", {2, splits, g, n}),
                      check.contiguous<double>(p.lse, "lse", {g, n}), splits, g * n, p.temp};
  return check.passed() ? enqueue(merge_one, blocks(call.total), kBlockThreads, 0, stream, call) : check.status();
}

#define QUERY_TERMS_FIELDS(FIELD)                                                                    \
  FIELD(Tensor, student_scale) /* [G, N padded to whole tiles] float32 */                            \
  FIELD(Tensor, teacher_scale) /* [G, N padded] float32, or none, as the next but one */             \
  FIELD(Tensor, student_lse)   /* [G, N] float64 */                                                  \
  FIELD(Tensor, teacher_lse)   /* [G, N] float64 */                                                  \
  FIELD(Tensor, upstream)      /* [G, N] float32, or none: the student's gradient alone is wanted */ \
  FIELD(Tensor, logit_gap)     /* [G, N] float64, or none */                                         \
  FIELD(Tensor, largest)       /* [] float32 at least every |upstream|, or none */                   \
  FIELD(double, student_temp)                                                                        \
  FIELD(double, teacher_temp)                                                                        \
  FIELD(Tensor, terms)  /* [G, N padded, 12] float32, a result like the next */                      \
  FIELD(Tensor, factor) /* [1] float32: what sums of weights have to be multiplied by */
ACTION_PARAMS(QueryTermsParams, QUERY_TERMS_FIELDS)

int32_t query_terms(const QueryTermsParams& p, void* stream) {
  Checks check(kDevice, p.student_lse);
  const int64_t g = check.size(p.student_lse, "student_lse", 0, 2), n = check.size(p.student_lse, "student_lse", 1, 2);
  const int64_t padded = check.size(p.student_scale, "student_scale", 1, 2);
  if (padded < n) check.refuse(p.student_scale, "student_scale", "as long as the rows");
  Terms call{};
  call.student_scale = check.contiguous<float>(p.student_scale, "student_scale", {g, padded});
  call.teacher_scale = check.optional<float>(p.teacher_scale, "teacher_scale", {g, padded});
  call.student_lse = check.contiguous<double>(p.student_lse, "student_lse", {g, n});
  if (call.teacher_scale) call.teacher_lse = check.contiguous<double>(p.teacher_lse, "teacher_lse", {g, n});
  call.upstream = check.optional<float>(p.upstream, "upstream", {g, n});
  if (call.upstream) {
    if (call.teacher_scale) call.logit_gap = check.contiguous<double>(p.logit_gap, "logit_gap", {g, n});
    call.largest = check.contiguous<float>(p.largest, "largest", {});
  }
  call.terms = check.contiguous<float>(p.terms, "terms", {g, padded, kTerms});
  call.factor = check.contiguous<float>(p.factor, "factor", {1});
  call.queries = n;
  call.padded = padded;
  call.total = g * n;
  call.student_temp = p.student_temp;
  call.teacher_temp = p.teacher_temp;
  return check.passed() ? enqueue(terms, blocks(call.total), kBlockThreads, 0, stream, call) : check.status();
}

}  // namespace

const Launcher kMergeSplits = ACTION_LAUNCHER(merge_splits, MergeSplitsParams);
const Launcher kMergeOne{"merge_one", untyped<MergeOneParams, merge_one_launcher>, ACTION_LAYOUT(MergeOneParams)};
const Launcher kQueryTerms = ACTION_LAUNCHER(query_terms, QueryTermsParams);

}  // namespace action
