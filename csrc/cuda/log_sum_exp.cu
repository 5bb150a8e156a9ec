// The log-sum-exp of the similarities to a bank, and its gradients: what action_contrast does, without a teacher.
#include "../params/log_sum_exp.h"

#include "library.cuh"
#include "whole_bank.cuh"

namespace action {
namespace {

void log_sum_exp(const LogSumExpParams& p, Checks& check, Call& call) {
  const Shape shape = whole_bank(check, p.query, "query", p.bank);
  const auto [g, n, m, d] = shape;
  Forward all{{shape, p.query, kNoTensor, p.bank, p.normalize, p.tf32, p.temp, p.temp}};
  all.statistics = check.contiguous<double>(p.lse, "lse", {g, n});
  all.student_grad = check.optional<float>(p.query_grad, "query_grad", {g, n, d});
  if (check.passed()) forward(call, all);
}

void log_sum_exp_bank_gradient(const LogSumExpBankGradientParams& p, Checks& check, Call& call) {
  const Shape shape = whole_bank(check, p.query, "query", p.bank);
  const auto [g, n, m, d] = shape;
  Backward all{{shape, p.query, kNoTensor, p.bank, p.normalize, p.tf32, p.temp, p.temp}};
  all.upstream = check.contiguous<float>(p.grad_lse, "grad_lse", {g, n});
  all.statistics = check.contiguous<double>(p.lse, "lse", {g, n});
  all.result = check.contiguous<float>(p.bank_grad, "bank_grad", {g, m, d});
  if (check.passed()) backward(call, all);
}

}  // namespace

const Launcher kLogSumExp = ACTION_OPERATOR(log_sum_exp, LogSumExpParams, query);
const Launcher kLogSumExpBankGradient = ACTION_OPERATOR(log_sum_exp_bank_gradient, LogSumExpBankGradientParams, query);

}  // namespace action
