// The sweep over a bank that action_contrast, log_sum_exp and hard_negatives share.
#pragma once

#include "../params/checks.h"
#include "parallel.h"
#include "simd.h"
#include "variant.h"

namespace action::ACTION_ISA {

struct BankPass {
  Shape shape;
  Tensor student, teacher, bank;  // without a teacher there is no divergence
  bool normalize;
  double student_temp = 1.0, teacher_temp = 1.0;
  int64_t k = 0;                                                  // 0: no selection
  const int64_t *query_labels = nullptr, *bank_labels = nullptr;  // [G, N] and [G, M], or nullptr
  float* kl = nullptr;                                            // [G, N]
  // [G, N]; with a teacher all or none of them, without one the first makes it more than a selection.
  double *student_lse = nullptr, *teacher_lse = nullptr, *logit_gap = nullptr;
  bool lses_given = false;        // they are read: only the gradient is wanted
  float* student_grad = nullptr;  // [G, N, D], or nullptr: not wanted
  float* similarity = nullptr;    // [G, N, k]
  int64_t* index = nullptr;       // [G, N, k]
};

void bank_pass(const BankPass&, Resources);

}  // namespace action::ACTION_ISA
