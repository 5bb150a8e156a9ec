// The second pass over the bank where no gradient is wanted: which rows may be among a query's k best.
#include "passes.cuh"

namespace action {
namespace {

template <class Math>
__global__ void __launch_bounds__(kThreads, 3) verdicts(VerdictsPass p) {
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

Plan plan_of(int64_t pitch) { return make_plan(pitch, 1, 1, false); }

}  // namespace

void verdicts(Queue& queue, VerdictsPass p, const Format& format, int64_t groups) {
  p.plan = plan_of(format.pitch());
  const int64_t blocks = groups * ceil_div(p.query.rows, kBlock) * p.num_splits;
  with_math(format.dtype, format.tf32, [&](auto math) {
    using Math = decltype(math);
    queue.enqueue("verdicts", verdicts<Math>, blocks, kThreads, shared_of<Math>(p.plan), p);
  });
}

}  // namespace action

using namespace action;

/// Bytes of shared memory that a block of the pass gets.
ACTION_EXPORT int action_verdicts_shared(int dtype, int tf32, int64_t pitch) {
  const Plan plan = plan_of(pitch);
  return with_math(static_cast<Dtype>(dtype), tf32 != 0, [&](auto math) { return shared_of<decltype(math)>(plan); });
}
