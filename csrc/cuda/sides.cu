#include "sides.cuh"

#include <algorithm>

namespace action {
namespace {

/// Factor on a gradient's weights: scales of unit rows are 1/256 to 1/128, and float16 has its finest numbers around 1
/// to 1000. A weight of one term has to be at most 2^15, and no difference of probabilities exceeds 1.
double boost_of(bool normalize, bool one_term) {
  if (one_term) return 0x1p22;
  return normalize ? 0x1p16 : 1.0;
}

}  // namespace

Sides take_sides(Workspace& memory, const Softmaxes& p, const Format& format) {
  const int64_t g = p.shape.groups, n = p.shape.queries;
  const Side student = take_side(memory, format, g, n);
  const Side teacher = p.teacher.given() ? take_side(memory, format, g, n) : Side{};
  return {format, student, teacher, take_side(memory, format, g, p.shape.rows)};
}

Prepare prepare_of(const Softmaxes& p, const Sides& sides) {
  Prepare all{};
  all.sets[0] = row_set(p.student, sides.student.data, sides.student.scale, sides.student.padded);
  if (p.teacher.given()) {
    all.sets[1] = row_set(p.teacher, sides.teacher.data, sides.teacher.scale, sides.teacher.padded);
  }
  all.sets[2] = row_set(p.bank, sides.bank.data, sides.bank.scale, sides.bank.padded);
  all.features = static_cast<int>(p.shape.features);
  all.width = static_cast<int>(sides.format.width);
  all.normalize = p.normalize;
  all.tf32 = sides.format.tf32;
  return all;
}

Splits splits_of_pass(const Sides& sides, int64_t groups, bool for_bank, bool sums) {
  const Side &kept = for_bank ? sides.bank : sides.student, &streamed = for_bank ? sides.student : sides.bank;
  const int64_t columns = sums ? column_blocks(sides.format) : 1;
  return splits(groups * ceil_div(kept.rows, kBlock) * columns, streamed.rows, kBlock);
}

GradientSteps sum_gradient(Workspace& memory, const Softmaxes& p, const Sides& sides, const float* terms, float* out,
                           bool for_bank) {
  const int64_t g = p.shape.groups;
  const Side& kept = for_bank ? sides.bank : sides.student;
  const Tensor& raw = for_bank ? p.bank : p.student;
  const Splits parts = splits_of_pass(sides, g, for_bank, true);
  const bool one_term = !for_bank && takes_one_term(raw.dtype, sides.format);
  const double boost = boost_of(p.normalize, one_term);
  // Applied at the end, like the boost.
  const double temp = for_bank ? std::min(p.student_temp, p.teacher_temp) : p.student_temp;

  Gradient pass{};
  pass.student = sides.student.data;
  pass.teacher = sides.teacher.data;
  pass.bank = sides.bank.data;
  pass.terms = terms;
  pass.bank_scale = sides.bank.scale;
  pass.partial = memory.take<float>(parts.count * g * kept.rows * sides.format.width);
  pass.queries = sides.student.rows;
  pass.queries_padded = sides.student.padded;
  pass.rows = sides.bank.rows;
  pass.rows_padded = sides.bank.padded;
  pass.num_splits = parts.count;
  pass.span = parts.span;
  pass.groups = g;
  pass.student_factor = static_cast<float>(kLog2e / p.student_temp);
  pass.teacher_factor = static_cast<float>(kLog2e / p.teacher_temp);
  pass.student_grad_scale = static_cast<float>(temp / p.student_temp);
  pass.teacher_grad_scale = static_cast<float>(temp / p.teacher_temp / kLog2e);
  pass.boost = static_cast<float>(boost);
  pass.one_term = one_term;

  Finish finish{};
  finish.x = matrix_of(raw);
  finish.partial = pass.partial;
  finish.out = out;
  finish.rows = kept.rows;
  finish.total = g * kept.rows;
  finish.dtype = raw.dtype;
  finish.parts = static_cast<int>(parts.count);
  finish.features = static_cast<int>(p.shape.features);
  finish.width = static_cast<int>(sides.format.width);
  finish.constant = static_cast<float>(1.0 / (temp * boost));
  finish.normalize = p.normalize;
  return {pass, finish};
}

}  // namespace action
