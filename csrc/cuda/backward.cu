// A gradient from saved log-sum-exps, in a whole bank or in the student: prepare all rows, what the pass reads of every
// query, the pass, and the gradient in the raw rows.
#include "sides.cuh"

namespace action {

void backward(Call& call, const Backward& p) {
  Workspace& memory = call.memory;
  const int64_t g = p.shape.groups, n = p.shape.queries;
  const Sides sides = take_sides(memory, p, format_of(p));

  Prepare all = prepare_of(p, sides);
  if (p.upstream) all.upstream = upstream_of(memory, p.upstream, g * n);
  prepare(call.queue, all, sides.format.dtype);

  QueryTerms terms{};
  terms.scales = scales_of(p, sides);
  terms.statistics = p.statistics;
  terms.upstream = p.upstream;
  terms.largest = all.upstream.largest;
  terms.measured = all.upstream.blocks;
  terms.terms = memory.take<float>(g * sides.student.padded * kTerms);
  terms.factor = memory.take_if<float>(p.upstream, 1);
  terms.total = g * n;
  query_terms(call.queue, terms);

  auto [pass, finish] = sum_gradient(memory, p, sides, terms.terms, p.result, p.upstream);
  finish.factor = terms.factor;
  gradient(call.queue, pass, sides.format, p.upstream);
  finish_and_collect(call.queue, finish, {}, sides.format);
}

}  // namespace action
