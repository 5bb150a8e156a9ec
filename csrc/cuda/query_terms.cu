// What the bank's gradient reads of every query, from the saved log-sum-exps and the upstream gradient.
#include "launch.cuh"
#include "library.cuh"
#include "statistics.cuh"

namespace action {
namespace {

constexpr int kBlockThreads = 128;

struct Queries {
  Scales scales;
  const double* student_lse;  // [G, N], as the next
  const double* teacher_lse;
  const float* upstream;
  const double* logit_gap;
  const float* largest;  // one number, at least every |upstream|
  float* terms;          // [G, padded, kTerms]
  float* factor;         // one number: what sums have to be multiplied by
  int64_t total;
};

__global__ void __launch_bounds__(kBlockThreads) query_terms(Queries p) {
  const int64_t row = int64_t{blockIdx.x} * kBlockThreads + threadIdx.x;
  if (row >= p.total) return;
  const Scales& scales = p.scales;
  float* out = write_terms(p.terms, scales, row, p.student_lse[row], scales.teacher ? p.teacher_lse[row] : 0.0);
  // Weights stay of order 1: the power of two of the largest upstream gradient is applied at the end.
  int exponent = 0;
  const float largest = *p.largest;
  if (largest > 0.0f && largest <= 3.4028235e38f) frexpf(largest, &exponent);
  out[6] = ldexpf(p.upstream[row], -exponent);
  // The student's logit that lies the mean gap below the teacher's center.
  if (scales.teacher)
    center(static_cast<double>(out[4]) / scales.teacher_temp - p.logit_gap[row], scales.student_temp, out[7], out[8]);
  if (row == 0) *p.factor = ldexpf(1.0f, exponent);
}

#define QUERY_TERMS_FIELDS(FIELD)                                                      \
  FIELD(Tensor, student_scale) /* [G, N padded to whole tiles] float32 */              \
  FIELD(Tensor, teacher_scale) /* [G, N padded] float32, or none: one softmax alone */ \
  FIELD(Tensor, student_lse)   /* [G, N] float64 */                                    \
  FIELD(Tensor, teacher_lse)   /* [G, N] float64, or none */                           \
  FIELD(Tensor, upstream)      /* [G, N] float32 */                                    \
  FIELD(Tensor, logit_gap)     /* [G, N] float64, or none: one softmax alone */        \
  FIELD(Tensor, largest)       /* [] float32 at least every |upstream| */              \
  FIELD(double, student_temp)                                                          \
  FIELD(double, teacher_temp)                                                          \
  FIELD(Tensor, terms)  /* [G, N padded, 12] float32, a result like the next */        \
  FIELD(Tensor, factor) /* [1] float32: what sums of weights have to be multiplied by */
ACTION_PARAMS(QueryTermsParams, QUERY_TERMS_FIELDS)

int32_t query_terms_launcher(const QueryTermsParams& p, void* stream) {
  Checks check(kDevice, p.student_lse);
  const int64_t g = check.size(p.student_lse, "student_lse", 0, 2), n = check.size(p.student_lse, "student_lse", 1, 2);
  const int64_t padded = check.size(p.student_scale, "student_scale", 1, 2);
  if (padded < n) check.refuse(p.student_scale, "student_scale", "as long as the rows");
  Queries call{};
  call.scales = {check.contiguous<float>(p.student_scale, "student_scale", {g, padded}),
                 check.optional<float>(p.teacher_scale, "teacher_scale", {g, padded}),
                 n,
                 padded,
                 p.student_temp,
                 p.teacher_temp};
  call.student_lse = check.contiguous<double>(p.student_lse, "student_lse", {g, n});
  if (p.teacher_scale.given()) {
    call.teacher_lse = check.contiguous<double>(p.teacher_lse, "teacher_lse", {g, n});
    call.logit_gap = check.contiguous<double>(p.logit_gap, "logit_gap", {g, n});
  }
  call.upstream = check.contiguous<float>(p.upstream, "upstream", {g, n});
  call.largest = check.contiguous<float>(p.largest, "largest", {});
  call.terms = check.contiguous<float>(p.terms, "terms", {g, padded, kTerms});
  call.factor = check.contiguous<float>(p.factor, "factor", {1});
  call.total = g * n;
  if (!check.passed()) return check.status();
  const auto blocks = static_cast<unsigned>((call.total + kBlockThreads - 1) / kBlockThreads);
  return enqueue(query_terms, blocks, kBlockThreads, 0, stream, call);
}

}  // namespace

const Launcher kQueryTerms{"query_terms", untyped<QueryTermsParams, query_terms_launcher>,
                           ACTION_LAYOUT(QueryTermsParams)};

}  // namespace action
