// The masked top-k of similarities, and its gradient in the queries. (That in the bank is indexed_rows.cu's.)
#include "../params/hard_negatives.h"

#include "indexed_rows.cuh"
#include "library.cuh"
#include "whole_bank.cuh"

namespace action {
namespace {

struct SelectedGradient {
  Indexed in;
  const float* weights;  // [G, N, k]
  float* query_grad;     // [G, N, D]
};

/// grad_i = sum of weights[i, e] unit(bank row that entry e names).
template <class T>
__global__ void __launch_bounds__(32 * kWarps, 4) selected_query_grad(SelectedGradient p) {
  const Indexed& in = p.in;
  const int64_t line = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (line >= in.total) return;  // whole warps
  const int64_t group = line / in.queries, entries = line * in.k;
  const int lane = threadIdx.x % 32;
  float* sums = p.query_grad + line * in.features;
  for (int i = lane; i < in.features; i += 32) sums[i] = 0.0f;
  for (int first = 0; first < in.k; first += 32) {
    // Lane i keeps entry first + i: which row it names, and that row's weight.
    const int64_t named = first + lane < in.k ? in.index[entries + first + lane] : -1;
    const int count = in.k - first < 32 ? in.k - first : 32;
    Compared x{0.0f, 1.0f};
    if (in.normalize) x = compare<T>(in, group, named, count, nullptr, 0.0f);
    const float weight = named >= 0 && named < in.rows ? p.weights[entries + first + lane] : 0.0f;
    add_rows<T>(in, group, named, count, weight * x.factor, sums);
  }
  finish_row(in, in.query, line, sums);
}

void hard_negatives(const HardNegativesParams& p, Checks& check, Call& call) {
  const Shape shape = whole_bank(check, p.query, "query", p.bank);
  const auto [g, n, m, d] = shape;
  Forward all{{shape, p.query, kNoTensor, p.bank, p.normalize, p.tf32}};
  if (p.query_labels.given() || p.bank_labels.given()) {
    all.query_labels = check.contiguous<int64_t>(p.query_labels, "query_labels", {g, n});
    all.bank_labels = check.contiguous<int64_t>(p.bank_labels, "bank_labels", {g, m});
  }
  all.selected = selected_of(check, p.similarity, p.index, shape);
  if (check.passed() && all.selected.k > 0) forward(call, all);
}

void hard_negatives_gradient(const HardNegativesGradientParams& p, Checks& check, Call& call) {
  const Shape shape = check.shape(p.query, "query", p.bank);
  const auto [g, n, m, d] = shape;
  const int64_t k = check.size(p.index, "index", 2, 3);
  const float* weights = check.contiguous<float>(p.grad_similarity, "grad_similarity", {g, n, k});
  const int64_t* index = check.contiguous<int64_t>(p.index, "index", {g, n, k});
  float* query_grad = check.optional<float>(p.query_grad, "query_grad", {g, n, d});
  IndexedBankGradient bank = indexed_bank_gradient_of(p, check, shape, k);
  if (!check.passed()) return;
  const Indexed in = prepare_indexed(call, shape, p.query, kNoTensor, p.bank, index, k, p.normalize, nullptr);
  if (query_grad) {
    auto* kernel = of_dtype(p.bank.dtype, selected_query_grad<float>, selected_query_grad<__half>,
                            selected_query_grad<__nv_bfloat16>);
    call.queue.enqueue("selected_query_grad", kernel, warp_blocks(in.total), 32 * kWarps, 0,
                       SelectedGradient{in, weights, query_grad});
  }
  if (bank.result) {
    bank.query = in.query.data;
    bank.query_scale = in.query.scale;
    bank.weights = weights;
    bank.width = in.width;
    indexed_bank_gradient(call.queue, bank, p.bank.dtype);
  }
}

}  // namespace

const Launcher kHardNegatives = ACTION_OPERATOR(hard_negatives, HardNegativesParams, query);
const Launcher kHardNegativesGradient = ACTION_OPERATOR(hard_negatives_gradient, HardNegativesGradientParams, query);

}  // namespace action
