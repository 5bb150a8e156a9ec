// Between the passes, one launch: splits' sums become statistics, group maxima become the selection's limits.
//
// Neither reads what the other writes: the first blocks do the one, the others the other.
#include "launch.cuh"
#include "library.cuh"
#include "limits.cuh"
#include "statistics.cuh"

namespace action {
namespace {

constexpr int kBlockThreads = 128;
constexpr int kWarps = kBlockThreads / 32;

__global__ void __launch_bounds__(kBlockThreads) merge_and_limit(unsigned merging, Merge merge, Limits limits) {
  if (blockIdx.x < merging) {
    const int64_t row = int64_t{blockIdx.x} * kBlockThreads + threadIdx.x;
    if (row >= merge.total) return;
    if (merge.teacher_lse) {
      merge_pair(merge, row);
    } else {
      merge_one(merge, row);
    }
  } else {
    const int64_t row = int64_t{blockIdx.x - merging} * kWarps + threadIdx.x / 32;
    if (row < limits.total) find_limit(limits, row);  // whole warps
  }
}

unsigned blocks(int64_t count, int of_block) { return static_cast<unsigned>((count + of_block - 1) / of_block); }

#define MERGE_AND_LIMIT_FIELDS(FIELD)                                                                     \
  FIELD(Tensor, sums)          /* [6, num_splits, G, N] float32 of bank_pass, of one [2, ...]; or none */ \
  FIELD(Tensor, student_scale) /* [G, N padded to whole tiles] float32, with terms */                     \
  FIELD(Tensor, teacher_scale) /* [G, N padded] float32, with terms of two softmaxes */                   \
  FIELD(double, student_temp)                                                                             \
  FIELD(double, teacher_temp)                                                                             \
  FIELD(Tensor, kl)            /* [G, N] float32, a result like those below; or none, like the next */    \
  FIELD(Tensor, logit_gap)     /* [G, N] float64 */                                                       \
  FIELD(Tensor, student_lse)   /* [G, N] float64, or none without sums */                                 \
  FIELD(Tensor, teacher_lse)   /* [G, N] float64, or none: one softmax alone */                           \
  FIELD(Tensor, terms)         /* [G, N padded, 12] float32 for the student's gradient, or none */        \
  FIELD(Tensor, maxima)        /* [G, N, groups] float32 of bank_pass, or none */                         \
  FIELD(Tensor, query_largest) /* [G, N] float32 of prepare; or none: unit rows */                        \
  FIELD(Tensor, longest)       /* [G] int32 of bank_pass, with the last */                                \
  FIELD(int64_t, features)     /* of a row */                                                             \
  FIELD(Tensor, query_labels)  /* [G, N] int64, or none */                                                \
  FIELD(int64_t, k)            /* rows to select */                                                       \
  FIELD(double, error)         /* bound of a product's error, relative to the rows' lengths */            \
  FIELD(Tensor, limits)        /* [G, N] float32, a result like the next */                               \
  FIELD(Tensor, found)         /* [G, N] int32 -1 where the buffer has to select, 0 elsewhere */
ACTION_PARAMS(MergeAndLimitParams, MERGE_AND_LIMIT_FIELDS)

Merge merge_of(Checks& check, const MergeAndLimitParams& p) {
  const int64_t g = check.size(p.student_lse, "student_lse", 0, 2), n = check.size(p.student_lse, "student_lse", 1, 2);
  const int64_t num_splits = check.size(p.sums, "sums", 1, 4);
  const bool pair = p.teacher_lse.given();
  check.require(num_splits > 0, "sums must be of one split or more");
  Merge call{};
  call.sums = check.contiguous<float>(p.sums, "sums", {pair ? 6 : 2, num_splits, g, n});
  call.student_lse = check.contiguous<double>(p.student_lse, "student_lse", {g, n});
  if (pair) {
    call.kl = check.contiguous<float>(p.kl, "kl", {g, n});
    call.logit_gap = check.contiguous<double>(p.logit_gap, "logit_gap", {g, n});
    call.teacher_lse = check.contiguous<double>(p.teacher_lse, "teacher_lse", {g, n});
  }
  call.scales.queries = n;
  call.scales.student_temp = p.student_temp;
  call.scales.teacher_temp = p.teacher_temp;
  if (p.terms.given()) {
    const int64_t padded = check.size(p.student_scale, "student_scale", 1, 2);
    if (padded < n) check.refuse(p.student_scale, "student_scale", "as long as the rows");
    call.scales.student = check.contiguous<float>(p.student_scale, "student_scale", {g, padded});
    if (pair) call.scales.teacher = check.contiguous<float>(p.teacher_scale, "teacher_scale", {g, padded});
    call.scales.padded = padded;
    call.terms = check.contiguous<float>(p.terms, "terms", {g, padded, kTerms});
  }
  call.num_splits = num_splits;
  call.total = g * n;
  return call;
}

Limits limits_of(Checks& check, const MergeAndLimitParams& p) {
  const int64_t g = check.size(p.maxima, "maxima", 0, 3), n = check.size(p.maxima, "maxima", 1, 3);
  const int64_t line = check.size(p.maxima, "maxima", 2, 3);
  check.require(p.k > 0 && p.k <= line && line <= INT32_MAX, "k must be positive and no more than there are groups");
  const bool unit = !p.query_largest.given() && !p.longest.given();
  return {check.contiguous<float>(p.maxima, "maxima", {g, n, line}),
          unit ? nullptr : check.contiguous<float>(p.query_largest, "query_largest", {g, n}),
          unit ? nullptr : static_cast<const float*>(check.contiguous(p.longest, "longest", Dtype::int32, {g})),
          check.optional<int64_t>(p.query_labels, "query_labels", {g, n}),
          check.contiguous<float>(p.limits, "limits", {g, n}),
          check.contiguous<int32_t>(p.found, "found", {g, n}),
          g * n,
          n,
          static_cast<int>(line),
          static_cast<int>(p.k),
          static_cast<int>(p.features),
          static_cast<float>(p.error)};
}

int32_t merge_and_limit_launcher(const MergeAndLimitParams& p, void* stream) {
  const bool merges = p.sums.given() || p.student_lse.given(), limiting = p.maxima.given() || p.limits.given();
  Checks check(kDevice, merges ? p.student_lse : p.limits);
  check.require(merges || limiting, "there must be sums or maxima");
  const Merge merge = merges ? merge_of(check, p) : Merge{};
  const Limits limits = limiting ? limits_of(check, p) : Limits{};
  if (!check.passed()) return check.status();
  const unsigned merging = blocks(merge.total, kBlockThreads), count = merging + blocks(limits.total, kWarps);
  return enqueue(merge_and_limit, count, kBlockThreads, 0, stream, merging, merge, limits);
}

}  // namespace

const Launcher kMergeAndLimit{"merge_and_limit", untyped<MergeAndLimitParams, merge_and_limit_launcher>,
                              ACTION_LAYOUT(MergeAndLimitParams)};

}  // namespace action
