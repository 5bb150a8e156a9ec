// Both softmaxes over the bank, their divergence with its gradients, and the hard negatives.
#include "../params/action_contrast.h"

#include "../params/checks.h"
#include "bank_gradient.h"
#include "bank_pass.h"

namespace action::ACTION_ISA {

int32_t action_contrast(const ActionContrastParams& p) {
  Checks check(Device::cpu, p.student);
  const Shape shape = check.shape(p.student, "student", p.bank);
  const auto [g, n, m, d] = shape;
  const int64_t k = check.size(p.index, "index", 2, 3);
  check.rows(p.teacher, "teacher", {g, n, d});
  BankPass pass{shape, p.student, p.teacher, p.bank, p.normalize, p.student_temp, p.teacher_temp, k};
  if (p.query_labels.given() || p.bank_labels.given()) {
    pass.query_labels = check.contiguous<int64_t>(p.query_labels, "query_labels", {g, n});
    pass.bank_labels = check.contiguous<int64_t>(p.bank_labels, "bank_labels", {g, m});
  }
  pass.kl = check.contiguous<float>(p.kl, "kl", {g, n});
  if (double* statistics = check.optional<double>(p.statistics, "statistics", {3, g, n})) {
    pass.student_lse = statistics;
    pass.teacher_lse = statistics + g * n;
    pass.logit_gap = statistics + 2 * g * n;
  }
  pass.student_grad = check.optional<float>(p.student_grad, "student_grad", {g, n, d});
  pass.similarity = check.contiguous<float>(p.similarity, "similarity", {g, n, k});
  pass.index = check.contiguous<int64_t>(p.index, "index", {g, n, k});
  if (check.passed()) run(p.threads, [&] { bank_pass(pass, {static_cast<int>(p.threads), p.scratch_bytes}); });
  return check.status();
}

int32_t action_contrast_student_gradient(const ActionContrastStudentGradientParams& p) {
  Checks check(Device::cpu, p.student);
  const Shape shape = check.shape(p.student, "student", p.bank);
  const auto [g, n, m, d] = shape;
  check.rows(p.teacher, "teacher", {g, n, d});
  BankPass pass{shape, p.student, p.teacher, p.bank, p.normalize, p.student_temp, p.teacher_temp};
  pass.student_lse = check.contiguous<double>(p.lses, "lses", {2, g, n});
  pass.teacher_lse = pass.student_lse + g * n;
  pass.lses_given = true;
  pass.student_grad = check.contiguous<float>(p.student_grad, "student_grad", {g, n, d});
  if (check.passed()) run(p.threads, [&] { bank_pass(pass, {static_cast<int>(p.threads), p.scratch_bytes}); });
  return check.status();
}

int32_t action_contrast_bank_gradient(const ActionContrastBankGradientParams& p) {
  Checks check(Device::cpu, p.student);
  const Shape shape = check.shape(p.student, "student", p.bank);
  const auto [g, n, m, d] = shape;
  check.rows(p.teacher, "teacher", {g, n, d});
  BankGradient pass{shape, p.student, p.teacher, p.bank, p.normalize, p.student_temp, p.teacher_temp};
  pass.upstream = check.contiguous<float>(p.grad_kl, "grad_kl", {g, n});
  pass.student_lse = check.contiguous<double>(p.statistics, "statistics", {3, g, n});
  pass.teacher_lse = pass.student_lse + g * n;
  pass.logit_gap = pass.student_lse + 2 * g * n;
  pass.bank_grad = check.contiguous<float>(p.bank_grad, "bank_grad", {g, m, d});
  if (check.passed()) run(p.threads, [&] { bank_gradient(pass, {static_cast<int>(p.threads), p.scratch_bytes}); });
  return check.status();
}

}  // namespace action::ACTION_ISA
