// InfoNCE over the bank rows that an index names, and its gradients in query and positive. (That in the bank is
// indexed_rows.cu's.)
#include "../params/anatomical_contrast.h"

#include "indexed_rows.cuh"
#include "library.cuh"

namespace action {
namespace {

struct InfoNce {
  Indexed in;
  Prepared positive;
  double temp, inverse;  // 1 / temp
  float inverse_temp;
  float* loss;             // [G, N]
  double* lse;             // [G, N], a result or an input
  const float* grad_loss;  // [G, N]
  float* weights;          // [G, N, k], or null
  float* query_grad;       // [G, N, D], or null, as the next
  float* positive_grad;
};

__device__ float own_similarity(const InfoNce& p, int64_t line) {
  float sum = 0.0f;
  for (int i = threadIdx.x % 32; i < p.in.width; i += 32) {
    sum = fmaf(p.in.query.data[line * p.in.width + i] * p.in.query.scale[line],
               p.positive.data[line * p.in.width + i] * p.positive.scale[line], sum);
  }
  return lanes_sum(sum);
}

template <class T>
__global__ void __launch_bounds__(32 * kWarps) info_nce(InfoNce p) {
  const int64_t line = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (line >= p.in.total) return;  // whole warps
  const int64_t group = line / p.in.queries;
  const int lane = threadIdx.x % 32;
  const float* query = p.in.query.data + line * p.in.width;
  const float scale = p.in.query.scale[line], factor = p.inverse_temp * static_cast<float>(kLog2e);
  const float own = own_similarity(p, line);
  const int64_t* index = p.in.index + line * p.in.k;
  float top = own, total = lane == 0 ? 1.0f : 0.0f;  // the positive counts once
  for (int first = 0; first < p.in.k; first += 32) {
    const int count = p.in.k - first < 32 ? p.in.k - first : 32;
    const int64_t named = lane < count ? index[first + lane] : -1;
    const float similarity = compare<T>(p.in, group, named, count, query, scale).similarity;
    if (named >= 0 && named < p.in.rows) {
      const float higher = fmaxf(top, similarity);
      total = total * exp2_fast((top - higher) * factor) + exp2_fast((similarity - higher) * factor);
      top = higher;
    }
  }
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const float other_top = __shfl_xor_sync(kAllLanes, top, step), other = __shfl_xor_sync(kAllLanes, total, step);
    const float higher = fmaxf(top, other_top);
    total = total * exp2_fast((top - higher) * factor) + other * exp2_fast((other_top - higher) * factor);
    top = higher;
  }
  if (lane == 0) {
    const float log_total = logf(total);
    p.loss[line] = log_total + (top - own) * p.inverse_temp;
    p.lse[line] = static_cast<double>(top) * p.inverse + log_total;
  }
}

/// Weights of the indexed similarities, and the gradients that they make in query and positive.
template <class T>
__global__ void __launch_bounds__(32 * kWarps, 4) info_nce_grad(InfoNce p) {
  const Indexed& in = p.in;
  const int64_t line = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (line >= in.total) return;  // whole warps
  const int64_t group = line / in.queries, entries = line * in.k;
  const int lane = threadIdx.x % 32;
  const float* query = in.query.data + line * in.width;
  const float scale = in.query.scale[line], factor = p.inverse_temp * static_cast<float>(kLog2e);
  const float grad_over_temp = p.grad_loss[line] * p.inverse_temp;
  const float center = static_cast<float>(p.lse[line] * p.temp);
  const float rest = static_cast<float>((p.lse[line] - static_cast<double>(center) * p.inverse) * kLog2e);
  float total = 0.0f;
  float* sums = p.query_grad ? p.query_grad + line * in.features : nullptr;
  if (sums) {
    for (int i = lane; i < in.features; i += 32) sums[i] = 0.0f;
  }
  for (int first = 0; first < in.k; first += 32) {
    // Lane i keeps entry first + i: which row it names, and that row's weight.
    const bool listed = first + lane < in.k;
    const int64_t named = listed ? in.index[entries + first + lane] : -1;
    const int count = in.k - first < 32 ? in.k - first : 32;
    const Compared x = compare<T>(in, group, named, count, query, scale);
    float weight = 0.0f;
    if (named >= 0 && named < in.rows) {
      const float probability = exp2_fast((x.similarity - center) * factor - rest);
      weight = grad_over_temp * probability;
      total += probability;
    }
    if (p.weights && listed) p.weights[entries + first + lane] = weight;
    if (sums) add_rows<T>(in, group, named, count, weight * x.factor, sums);
  }
  total = lanes_sum(total);
  __syncwarp();
  // d loss / d <q, p> = (p_positive - 1) / temp, which is minus the other probabilities.
  const float away = grad_over_temp * total;
  if (sums) {
    const float* positive = p.positive.data + line * in.width;
    for (int i = lane; i < in.features; i += 32) sums[i] -= away * (positive[i] * p.positive.scale[line]);
    finish_row(in, in.query, line, sums);
  }
  if (p.positive_grad) {
    float* grad = p.positive_grad + line * in.features;
    for (int i = lane; i < in.features; i += 32) grad[i] = -away * (query[i] * scale);
    finish_row(in, p.positive, line, grad);
  }
}

/// Checks what both directions are given, as they are given it.
template <class Params>
Shape shape_of(const Params& p, Checks& check) {
  const Shape shape = check.shape(p.query, "query", p.bank);
  check.rows(p.positive, "positive", {shape.groups, shape.queries, shape.features});
  return shape;
}

/// Prepares what both directions compare.
template <class Params>
InfoNce start(const Params& p, const Shape& shape, int64_t k, Call& call) {
  InfoNce all{};
  const auto* index = static_cast<const int64_t*>(p.index.data);
  all.in = prepare_indexed(call, shape, p.query, p.positive, p.bank, index, k, p.normalize, &all.positive);
  all.temp = p.temp;
  all.inverse = 1.0 / p.temp;
  all.inverse_temp = static_cast<float>(1.0 / p.temp);
  return all;
}

void anatomical_contrast(const AnatomicalContrastParams& p, Checks& check, Call& call) {
  const Shape shape = shape_of(p, check);
  const auto [g, n, m, d] = shape;
  const int64_t k = check.size(p.index, "index", 2, 3);
  check.contiguous<int64_t>(p.index, "index", {g, n, k});
  float* loss = check.contiguous<float>(p.loss, "loss", {g, n});
  double* lse = check.contiguous<double>(p.lse, "lse", {g, n});
  if (!check.passed()) return;
  InfoNce all = start(p, shape, k, call);
  all.loss = loss;
  all.lse = lse;
  auto* kernel = of_dtype(p.bank.dtype, info_nce<float>, info_nce<__half>, info_nce<__nv_bfloat16>);
  call.queue.enqueue("info_nce", kernel, warp_blocks(all.in.total), 32 * kWarps, 0, all);
}

void anatomical_contrast_gradient(const AnatomicalContrastGradientParams& p, Checks& check, Call& call) {
  const Shape shape = shape_of(p, check);
  const auto [g, n, m, d] = shape;
  const int64_t k = check.size(p.index, "index", 2, 3);
  check.contiguous<int64_t>(p.index, "index", {g, n, k});
  double* lse = check.contiguous<double>(p.lse, "lse", {g, n});
  const float* grad_loss = check.contiguous<float>(p.grad_loss, "grad_loss", {g, n});
  float* query_grad = check.optional<float>(p.query_grad, "query_grad", {g, n, d});
  float* positive_grad = check.optional<float>(p.positive_grad, "positive_grad", {g, n, d});
  IndexedBankGradient bank = indexed_bank_gradient_of(p, check, shape, k);
  if (!check.passed()) return;
  InfoNce all = start(p, shape, k, call);
  all.lse = lse;
  all.grad_loss = grad_loss;
  all.query_grad = query_grad;
  all.positive_grad = positive_grad;
  all.weights = call.memory.take_if<float>(bank.result, g * n * k);
  auto* kernel = of_dtype(p.bank.dtype, info_nce_grad<float>, info_nce_grad<__half>, info_nce_grad<__nv_bfloat16>);
  call.queue.enqueue("info_nce_grad", kernel, warp_blocks(all.in.total), 32 * kWarps, 0, all);
  if (bank.result) {
    bank.query = all.in.query.data;
    bank.query_scale = all.in.query.scale;
    bank.weights = all.weights;
    bank.width = all.in.width;
    indexed_bank_gradient(call.queue, bank, p.bank.dtype);
  }
}

}  // namespace

const Launcher kAnatomicalContrast = ACTION_OPERATOR(anatomical_contrast, AnatomicalContrastParams, query);
const Launcher kAnatomicalContrastGradient =
    ACTION_OPERATOR(anatomical_contrast_gradient, AnatomicalContrastGradientParams, query);

}  // namespace action
