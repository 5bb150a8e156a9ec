// The gradient in a whole bank: prepare all rows, what it reads of every query, a pass, and the gradient in the raw
// rows.
#include "passes.cuh"
#include "prepare.cuh"
#include "whole_bank.cuh"

namespace action {

void bank_gradient(Call& call, const BankGradient& p) {
  Workspace& memory = call.memory;
  const auto [g, n, m, d] = p.shape;
  const Format format = format_of({&p.student, &p.teacher, &p.bank}, d, p.tf32);
  const Side student = take_side(memory, format, g, n), bank = take_side(memory, format, g, m);
  const Side teacher = p.teacher.given() ? take_side(memory, format, g, n) : Side{};
  const double boost = boost_of(p.normalize), temp = std::min(p.student_temp, p.teacher_temp);  // applied at the end

  Prepare all{};
  all.sets[0] = row_set(p.student, student.data, student.scale, student.padded);
  if (p.teacher.given()) all.sets[1] = row_set(p.teacher, teacher.data, teacher.scale, teacher.padded);
  all.sets[2] = row_set(p.bank, bank.data, bank.scale, bank.padded);
  all.upstream = upstream_of(memory, p.upstream, g * n);
  all.features = static_cast<int>(d);
  all.width = static_cast<int>(format.width);
  all.normalize = p.normalize;
  all.tf32 = format.tf32;
  prepare(call.queue, all, format.dtype);

  QueryTerms terms{};
  terms.scales = {student.scale, teacher.scale, n, student.padded, p.student_temp, p.teacher_temp};
  terms.student_lse = p.student_lse;
  terms.teacher_lse = p.teacher_lse;
  terms.upstream = p.upstream;
  terms.logit_gap = p.logit_gap;
  terms.largest = all.upstream.largest;
  terms.measured = all.upstream.blocks;
  terms.terms = memory.take<float>(g * student.padded * kTerms);
  terms.factor = memory.take<float>(1);
  terms.total = g * n;
  query_terms(call.queue, terms);

  const Splits parts = splits(g * ceil_div(m, kBlock) * column_blocks(format), n, kBlock);
  Gradient pass{};
  pass.student = student.data;
  pass.teacher = teacher.data;
  pass.bank = bank.data;
  pass.terms = terms.terms;
  pass.bank_scale = bank.scale;
  pass.partial = memory.take<float>(parts.count * g * m * format.width);
  pass.queries = n;
  pass.queries_padded = student.padded;
  pass.rows = m;
  pass.rows_padded = bank.padded;
  pass.num_splits = parts.count;
  pass.span = parts.span;
  pass.groups = g;
  pass.student_factor = static_cast<float>(kLog2e / p.student_temp);
  pass.teacher_factor = static_cast<float>(kLog2e / p.teacher_temp);
  pass.student_grad_scale = static_cast<float>(temp / p.student_temp);
  pass.teacher_grad_scale = static_cast<float>(temp / p.teacher_temp / kLog2e);
  pass.boost = static_cast<float>(boost);
  gradient(call.queue, pass, format, true);

  Finish finish{};
  finish.x = matrix_of(p.bank);
  finish.partial = pass.partial;
  finish.factor = terms.factor;
  finish.out = p.bank_grad;
  finish.rows = m;
  finish.total = g * m;
  finish.dtype = p.bank.dtype;
  finish.parts = static_cast<int>(parts.count);
  finish.features = static_cast<int>(d);
  finish.width = static_cast<int>(format.width);
  finish.constant = static_cast<float>(1.0 / (temp * boost));
  finish.normalize = p.normalize;
  finish_and_collect(call.queue, finish, {}, format);
}

}  // namespace action
