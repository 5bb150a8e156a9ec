// What a gradient reads of every query, from the saved log-sum-exps and, in the bank, the upstream gradient.
#include "passes.cuh"

namespace action {
namespace {

constexpr int kBlockThreads = 128;

__global__ void __launch_bounds__(kBlockThreads) terms_of_queries(QueryTerms p) {
  const int64_t row = int64_t{blockIdx.x} * kBlockThreads + threadIdx.x;
  int most = 0;  // by its bits
  for (unsigned i = threadIdx.x % 32; i < p.measured; i += 32) most = max(most, __float_as_int(p.largest[i]));
  const float largest = __int_as_float(__reduce_max_sync(kAllLanes, most));
  if (row >= p.total) return;
  const Scales& scales = p.scales;
  float* out = write_terms(p.terms, scales, row, p.statistics[row], scales.teacher ? p.statistics[p.total + row] : 0.0);
  if (!p.upstream) return;
  // Weights stay of order 1: the power of two of the largest upstream gradient is applied at the end.
  int exponent = 0;
  if (largest > 0.0f) frexpf(largest, &exponent);
  out[6] = ldexpf(p.upstream[row], -exponent);
  // The student's logit that lies the mean gap below the teacher's center.
  if (scales.teacher) {
    const double gap = p.statistics[2 * p.total + row];
    center(static_cast<double>(out[4]) / scales.teacher_temp - gap, scales.student_temp, out[7], out[8]);
  }
  if (row == 0) *p.factor = ldexpf(1.0f, exponent);
}

}  // namespace

void query_terms(Queue& queue, const QueryTerms& p) {
  queue.enqueue("query_terms", terms_of_queries, ceil_div(p.total, kBlockThreads), kBlockThreads, 0, p);
}

}  // namespace action
