// What every walk over a whole bank begins with, and how a gradient is summed up and finished: the same in the forward
// pass and in those behind it.
#pragma once

#include "passes.cuh"
#include "prepare.cuh"
#include "whole_bank.cuh"

namespace action {

/// Prepared rows of a call; no teacher where there is one softmax.
struct Sides {
  Format format;
  Side student, teacher, bank;
};

inline Format format_of(const Softmaxes& p) {
  return format_of({&p.student, &p.teacher, &p.bank}, p.shape.features, p.normalize, p.tf32);
}

/// Memory for them.
Sides take_sides(Workspace& memory, const Softmaxes& p, const Format& format);

/// How they are prepared.
Prepare prepare_of(const Softmaxes& p, const Sides& sides);

inline Scales scales_of(const Softmaxes& p, const Sides& sides) {
  const Side& student = sides.student;
  return {student.scale, sides.teacher.scale, student.rows, student.padded, p.student_temp, p.teacher_temp};
}

/// How a pass over one side, for all of the other, is divided among blocks: of a gradient, or of verdicts alone.
Splits splits_of_pass(const Sides& sides, int64_t groups, bool for_bank, bool sums);

/// A pass that sums up a gradient, and what makes of its sums the gradient in the raw rows.
struct GradientSteps {
  Gradient pass;
  Finish finish;
};

/// The gradient in the student, or in the bank, from the terms of all queries, with memory for its parts. `out`: the
/// result.
GradientSteps sum_gradient(Workspace& memory, const Softmaxes& p, const Sides& sides, const float* terms, float* out,
                           bool for_bank);

}  // namespace action
