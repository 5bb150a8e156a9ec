// Both softmaxes over the bank, their divergence with its gradients, and the hard negatives.
#include "../params/action_contrast.h"

#include "library.cuh"
#include "whole_bank.cuh"

namespace action {
namespace {

void action_contrast(const ActionContrastParams& p, Checks& check, Call& call) {
  const Shape shape = whole_bank(check, p.student, "student", p.bank);
  const auto [g, n, m, d] = shape;
  check.rows(p.teacher, "teacher", {g, n, d});
  Forward all{{shape, p.student, p.teacher, p.bank, p.normalize, p.tf32, p.student_temp, p.teacher_temp}};
  if (p.query_labels.given() || p.bank_labels.given()) {
    all.query_labels = check.contiguous<int64_t>(p.query_labels, "query_labels", {g, n});
    all.bank_labels = check.contiguous<int64_t>(p.bank_labels, "bank_labels", {g, m});
  }
  all.kl = check.contiguous<float>(p.kl, "kl", {g, n});
  all.statistics = check.optional<double>(p.statistics, "statistics", {3, g, n});
  all.student_grad = check.optional<float>(p.student_grad, "student_grad", {g, n, d});
  all.selected = selected_of(check, p.similarity, p.index, shape);
  if (check.passed()) forward(call, all);
}

void action_contrast_student_gradient(const ActionContrastStudentGradientParams& p, Checks& check, Call& call) {
  const Shape shape = whole_bank(check, p.student, "student", p.bank);
  const auto [g, n, m, d] = shape;
  check.rows(p.teacher, "teacher", {g, n, d});
  Backward all{{shape, p.student, p.teacher, p.bank, p.normalize, p.tf32, p.student_temp, p.teacher_temp}};
  all.statistics = check.contiguous<double>(p.lses, "lses", {2, g, n});
  all.result = check.contiguous<float>(p.student_grad, "student_grad", {g, n, d});
  if (check.passed()) backward(call, all);
}

void action_contrast_bank_gradient(const ActionContrastBankGradientParams& p, Checks& check, Call& call) {
  const Shape shape = whole_bank(check, p.student, "student", p.bank);
  const auto [g, n, m, d] = shape;
  check.rows(p.teacher, "teacher", {g, n, d});
  Backward all{{shape, p.student, p.teacher, p.bank, p.normalize, p.tf32, p.student_temp, p.teacher_temp}};
  all.upstream = check.contiguous<float>(p.grad_kl, "grad_kl", {g, n});
  all.statistics = check.contiguous<double>(p.statistics, "statistics", {3, g, n});
  all.result = check.contiguous<float>(p.bank_grad, "bank_grad", {g, m, d});
  if (check.passed()) backward(call, all);
}

}  // namespace

const Launcher kActionContrast = ACTION_OPERATOR(action_contrast, ActionContrastParams, student);
const Launcher kActionContrastStudentGradient =
    ACTION_OPERATOR(action_contrast_student_gradient, ActionContrastStudentGradientParams, student);
const Launcher kActionContrastBankGradient =
    ACTION_OPERATOR(action_contrast_bank_gradient, ActionContrastBankGradientParams, student);

}  // namespace action
