// InfoNCE over the bank rows that an index names, and its gradients.
#include "../params/anatomical_contrast.h"

#include <cmath>

#include "../params/checks.h"
#include "indexed_rows.h"

namespace action::ACTION_ISA {
namespace {

struct InfoNce {
  Shape shape;
  Tensor query, positive, bank;
  int64_t k;
  double temp;
  bool normalize;
  const int64_t* index;  // [G, N, k]
  float* loss;           // [G, N]
  double* lse;           // [G, N]
};

struct Buffers {
  float *query, *positive, *converted;  // [D]
  float* scores;                        // [k + 1]
};

Buffers lay_out(const InfoNce& a, Cutter& cut) {
  Buffers b;
  b.query = cut.take(a.shape.features);
  b.positive = cut.take(a.shape.features);
  b.converted = cut.take(a.shape.features);
  b.scores = cut.take(a.k + 1);
  return b;
}

void info_nce(const InfoNce& a, int wanted_threads) {
  const Shape& s = a.shape;
  const int64_t features = s.features, total = s.groups * s.queries;
  const int threads = useful_threads(wanted_threads, 1.0 * total * (a.k + 1) * features);
  Cutter measure;
  lay_out(a, measure);
  Scratch scratch(threads, measure.used());
#pragma omp parallel for schedule(dynamic, 4) num_threads(threads)
  for (int64_t row = 0; row < total; ++row) {
    const int64_t group = row / s.queries, i = row % s.queries;
    Cutter cut(scratch.thread(thread_number()));
    const auto [x, y, converted, scores] = lay_out(a, cut);
    const Rows bank = group_rows(a.bank, group);
    unit_row(group_rows(a.query, group), i, a.normalize, x);
    unit_row(group_rows(a.positive, group), i, a.normalize, y);
    const float positive = dot(x, y, features);
    float largest = positive, unused;
    int64_t count = 0;
    scores[count++] = positive;
    for (int64_t n = 0; n < a.k; ++n) {
      const int64_t j = a.index[row * a.k + n];
      if (j < 0 || j >= s.rows) continue;
      prefetch_next(bank, s.rows, a.index + row * a.k, n, a.k);
      const float score = similarity(x, view_row(bank, j, converted), features, a.normalize, unused);
      largest = score > largest ? score : largest;
      scores[count++] = score;
    }
    const float scale = static_cast<float>(kLog2e / a.temp);
    float total_exp = 0;
    vf lanes{};
    int64_t n = 0;
    for (; n + kWidth <= count; n += kWidth) lanes += exp2((load(scores + n) - set1(largest)) * set1(scale));
    total_exp = sum(lanes);
    for (; n < count; ++n) total_exp += std::exp2((scores[n] - largest) * scale);
    const double rest = std::log(static_cast<double>(total_exp));
    const double lse = largest / a.temp + rest;
    a.lse[row] = lse;
    a.loss[row] = static_cast<float>((static_cast<double>(largest) - positive) / a.temp + rest);
  }
}

}  // namespace

int32_t anatomical_contrast(const AnatomicalContrastParams& p) {
  Checks check(Device::cpu, p.query);
  const Shape shape = check.shape(p.query, "query", p.bank);
  const auto [g, n, m, d] = shape;
  const int64_t k = check.size(p.index, "index", 2, 3);
  check.rows(p.positive, "positive", {g, n, d});
  InfoNce call{shape, p.query, p.positive, p.bank, k, p.temp, p.normalize, nullptr, nullptr, nullptr};
  call.index = check.contiguous<int64_t>(p.index, "index", {g, n, k});
  call.loss = check.contiguous<float>(p.loss, "loss", {g, n});
  call.lse = check.contiguous<double>(p.lse, "lse", {g, n});
  if (check.passed()) run(p.threads, [&] { info_nce(call, static_cast<int>(p.threads)); });
  return check.status();
}

int32_t anatomical_contrast_gradient(const AnatomicalContrastGradientParams& p) {
  Checks check(Device::cpu, p.query);
  const Shape shape = check.shape(p.query, "query", p.bank);
  const auto [g, n, m, d] = shape;
  const int64_t k = check.size(p.index, "index", 2, 3);
  check.rows(p.positive, "positive", {g, n, d});
  IndexedGradient pass{shape, p.query, p.positive, p.bank, p.normalize, k};
  pass.index = check.contiguous<int64_t>(p.index, "index", {g, n, k});
  pass.grad_loss = check.contiguous<float>(p.grad_loss, "grad_loss", {g, n});
  pass.lse = check.contiguous<double>(p.lse, "lse", {g, n});
  pass.temp = p.temp;
  pass.query_grad = check.optional<float>(p.query_grad, "query_grad", {g, n, d});
  pass.positive_grad = check.optional<float>(p.positive_grad, "positive_grad", {g, n, d});
  pass.bank_grad = check.optional<float>(p.bank_grad, "bank_grad", {g, m, d});
  if (check.passed()) run(p.threads, [&] { indexed_gradient(pass, {static_cast<int>(p.threads), p.scratch_bytes}); });
  return check.status();
}

}  // namespace action::ACTION_ISA
