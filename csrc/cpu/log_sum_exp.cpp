// The log-sum-exp of the similarities to a bank, and its gradients.
#include "../params/log_sum_exp.h"

#include "../params/checks.h"
#include "bank_gradient.h"
#include "bank_pass.h"

namespace action::ACTION_ISA {

int32_t log_sum_exp(const LogSumExpParams& p) {
  Checks check(Device::cpu, p.query);
  const Shape shape = check.shape(p.query, "query", p.bank);
  const auto [g, n, m, d] = shape;
  BankPass pass{shape, p.query, kNoTensor, p.bank, p.normalize, p.temp};
  pass.student_lse = check.contiguous<double>(p.lse, "lse", {g, n});
  pass.student_grad = check.optional<float>(p.query_grad, "query_grad", {g, n, d});
  if (check.passed()) run(p.threads, [&] { bank_pass(pass, {static_cast<int>(p.threads), p.scratch_bytes}); });
  return check.status();
}

int32_t log_sum_exp_bank_gradient(const LogSumExpBankGradientParams& p) {
  Checks check(Device::cpu, p.query);
  const Shape shape = check.shape(p.query, "query", p.bank);
  const auto [g, n, m, d] = shape;
  BankGradient pass{shape, p.query, kNoTensor, p.bank, p.normalize, p.temp, 1.0};
  pass.upstream = check.contiguous<float>(p.grad_lse, "grad_lse", {g, n});
  pass.student_lse = check.contiguous<double>(p.lse, "lse", {g, n});
  pass.bank_grad = check.contiguous<float>(p.bank_grad, "bank_grad", {g, m, d});
  if (check.passed()) run(p.threads, [&] { bank_gradient(pass, {static_cast<int>(p.threads), p.scratch_bytes}); });
  return check.status();
}

}  // namespace action::ACTION_ISA
