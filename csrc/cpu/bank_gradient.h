// The gradient in a whole bank that action_contrast and log_sum_exp share.
#pragma once

#include "../params/checks.h"
#include "parallel.h"
#include "simd.h"
#include "variant.h"

namespace action::ACTION_ISA {

struct BankGradient {
  Shape shape;
  Tensor student, teacher, bank;  // without a teacher it is that of the student's log-sum-exp
  bool normalize;
  double student_temp, teacher_temp;
  const float* upstream = nullptr;                              // [G, N]
  const double *student_lse = nullptr, *teacher_lse = nullptr;  // [G, N]
  const double* logit_gap = nullptr;                            // [G, N]
  float* bank_grad = nullptr;                                   // [G, M, D]
};

void bank_gradient(const BankGradient&, Resources);

}  // namespace action::ACTION_ISA
