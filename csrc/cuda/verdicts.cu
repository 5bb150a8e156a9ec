// The second pass over the bank where no gradient is wanted: which rows may be among a query's k best.
#include "verdicts.cuh"

#include "library.cuh"
#include "online_softmax.cuh"
#include "stream.cuh"

namespace action {
namespace {

struct Pass {
  Plan plan;
  Side query, bank;
  const float* bank_labels;  // or null
  int64_t num_splits, span;
  Words words;
};

template <class Math>
__global__ void __launch_bounds__(kThreads, 3) verdicts(Pass p) {
  using Block = Scores<Math>;
  const int64_t blocks = (p.query.rows + kBlock - 1) / kBlock;
  const int64_t split = blockIdx.x % p.num_splits, tile = blockIdx.x / p.num_splits;
  const int64_t first = tile % blocks * kBlock, group = tile / blocks;
  const int64_t begin = split * p.span, end = begin + p.span < p.bank.rows ? begin + p.span : p.bank.rows;
  const int64_t warp_first = first + warp_id() * kWarpRows;

  Stream<Math, 1, 1, 1, false, 2> stream;
  stream.plan = p.plan;
  stream.left[0] = p.query.data + group * p.query.rows * p.plan.pitch;
  stream.right[0] = p.bank.data + group * p.bank.rows * p.plan.pitch;
  stream.terms[0] = p.bank.scale + group * p.bank.padded;
  stream.terms[1] = p.bank_labels ? p.bank_labels + group * p.bank.padded : nullptr;
  stream.first = first;
  stream.left_end = p.query.rows;
  stream.out = 0;

  float scale[Block::kRows];
#pragma unroll
  for (int r = 0; r < Block::kRows; ++r) {
    const int64_t row = warp_first + Block::row(r);
    scale[r] = row < p.query.rows ? p.query.scale[group * p.query.padded + row] : 0.0f;
  }
  Verdicts<Math> found;
  const int64_t own_first = group * p.query.rows + warp_first;
  const int rows_here = rows_of_warp(warp_first, p.query.rows);
  found.start(stream.besides() + warp_id() * Verdicts<Math>::kShared, p.words, own_first, rows_here, split);
  const auto use = [&](int64_t start, Block& s, Block&, const float* terms) {
    scale_products(s, scale, terms);
    found.take(s, p.words, start, rows_of_tile(start, end), terms + kBlock);
  };
  stream.run(begin, end, use, [](Block&, Block&, const char*, const char*) {});
  found.finish(p.words, own_first, rows_here, split);
}

template <class Math>
int shared_of(const Plan& plan) {
  return shared_bytes(plan, 2, 4 * Verdicts<Math>::kShared);
}

template <class Math>
int32_t run(const Pass& p, int64_t blocks, void* stream) {
  return enqueue(verdicts<Math>, static_cast<unsigned>(blocks), kThreads, shared_of<Math>(p.plan), stream, p);
}

Plan plan_of(int64_t pitch) { return make_plan(pitch, 1, 1, false); }

#define VERDICTS_FIELDS(FIELD)                                          \
  FIELD(Tensor, query)       /* [G, N, padded D] prepared rows */       \
  FIELD(Tensor, query_scale) /* [G, N padded to whole tiles] float32 */ \
  FIELD(Tensor, bank)        /* [G, M, padded D] */                     \
  FIELD(Tensor, bank_scale)  /* [G, M padded to whole tiles] float32 */ \
  FIELD(bool, tf32)          /* float32 rows have been rounded to it */ \
  FIELD(int64_t, num_splits) /* of the bank */                          \
  FIELD(int64_t, span)       /* bank rows of a split */                 \
  ACTION_WORDS_FIELDS(FIELD)
ACTION_PARAMS(VerdictsParams, VERDICTS_FIELDS)

int32_t verdicts_launcher(const VerdictsParams& p, void* stream) {
  Checks check(kDevice, p.query);
  const int64_t g = check.size(p.query, "query", 0, 3), n = check.size(p.query, "query", 1, 3);
  const int64_t width = check.size(p.query, "query", 2, 3), m = check.size(p.bank, "bank", 1, 3);
  const Dtype dtype = p.query.dtype;
  check.rows(p.query, "query", {g, n, width});
  Pass call{};
  call.plan = plan_of(width * (dtype == Dtype::float32 ? 4 : 2));
  call.query = side_of(check, p.query, "query", p.query_scale, "query_scale", dtype, g, n, width);
  call.bank = side_of(check, p.bank, "bank", p.bank_scale, "bank_scale", dtype, g, m, width);
  check_splits(check, p.num_splits, p.span, m);
  call.words = words_of(check, p, g, n, p.num_splits);
  if (p.query_labels.given() || p.bank_labels.given()) {
    check.contiguous<int64_t>(p.query_labels, "query_labels", {g, n});
    call.bank_labels = streamed_terms(check, p.bank_labels, "bank_labels", m, {g, call.bank.padded});
  }
  call.num_splits = p.num_splits;
  call.span = p.span;
  if (!check.passed()) return check.status();
  const int64_t blocks = g * ((n + kBlock - 1) / kBlock) * p.num_splits;
  return with_math(dtype, p.tf32, [&](auto math) { return run<decltype(math)>(call, blocks, stream); });
}

}  // namespace

const Launcher kVerdicts{"verdicts", untyped<VerdictsParams, verdicts_launcher>, ACTION_LAYOUT(VerdictsParams)};

}  // namespace action

using namespace action;

/// Bytes of shared memory that a block of the pass gets.
ACTION_EXPORT int action_verdicts_shared(int dtype, int tf32, int64_t pitch) {
  const Plan plan = plan_of(pitch);
  return with_math(static_cast<Dtype>(dtype), tf32 != 0, [&](auto math) { return shared_of<decltype(math)>(plan); });
}
