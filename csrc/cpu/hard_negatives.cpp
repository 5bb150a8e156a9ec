// The masked top-k of similarities, and its gradient.
#include "../params/hard_negatives.h"

#include "../params/checks.h"
#include "bank_pass.h"
#include "indexed_rows.h"

namespace action::ACTION_ISA {

int32_t hard_negatives(const HardNegativesParams& p) {
  Checks check(Device::cpu, p.query);
  const Shape shape = check.shape(p.query, "query", p.bank);
  const auto [g, n, m, d] = shape;
  const int64_t k = check.size(p.index, "index", 2, 3);
  BankPass pass{shape, p.query, kNoTensor, p.bank, p.normalize, 1.0, 1.0, k};
  if (p.query_labels.given() || p.bank_labels.given()) {
    pass.query_labels = check.contiguous<int64_t>(p.query_labels, "query_labels", {g, n});
    pass.bank_labels = check.contiguous<int64_t>(p.bank_labels, "bank_labels", {g, m});
  }
  pass.similarity = check.contiguous<float>(p.similarity, "similarity", {g, n, k});
  pass.index = check.contiguous<int64_t>(p.index, "index", {g, n, k});
  if (check.passed()) run(p.threads, [&] { bank_pass(pass, {static_cast<int>(p.threads), p.scratch_bytes}); });
  return check.status();
}

int32_t hard_negatives_gradient(const HardNegativesGradientParams& p) {
  Checks check(Device::cpu, p.query);
  const Shape shape = check.shape(p.query, "query", p.bank);
  const auto [g, n, m, d] = shape;
  const int64_t k = check.size(p.index, "index", 2, 3);
  IndexedGradient pass{shape, p.query, {}, p.bank, p.normalize, k};
  pass.index = check.contiguous<int64_t>(p.index, "index", {g, n, k});
  pass.grad_similarity = check.contiguous<float>(p.grad_similarity, "grad_similarity", {g, n, k});
  pass.query_grad = check.optional<float>(p.query_grad, "query_grad", {g, n, d});
  pass.bank_grad = check.optional<float>(p.bank_grad, "bank_grad", {g, m, d});
  if (check.passed()) run(p.threads, [&] { indexed_gradient(pass, {static_cast<int>(p.threads), p.scratch_bytes}); });
  return check.status();
}

}  // namespace action::ACTION_ISA
