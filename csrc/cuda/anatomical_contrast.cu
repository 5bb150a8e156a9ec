// InfoNCE over the bank rows that an index names, and its gradients in query and positive. (That in the bank is
// indexed_rows.cu's.)
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

template <class Params>
InfoNce call_of(const Params& p, Checks& check) {
  InfoNce call{};
  call.in = indexed_of(p, check);
  const int64_t n = call.in.queries, g = n ? call.in.total / n : 0;
  call.positive = {check.contiguous<float>(p.positive, "positive", {g, n, call.in.width}),
                   check.contiguous<float>(p.positive_scale, "positive_scale", {g, n}),
                   check.contiguous<float>(p.positive_inverse, "positive_inverse", {g, n})};
  call.temp = p.temp;
  call.inverse = 1.0 / p.temp;
  call.inverse_temp = static_cast<float>(1.0 / p.temp);
  call.lse = check.contiguous<double>(p.lse, "lse", {g, n});
  return call;
}

#define INFO_NCE_FIELDS(FIELD)                                                 \
  FIELD(Tensor, query)            /* [G, N, padded D] prepared float32 rows */ \
  FIELD(Tensor, query_scale)      /* [G, N] float32 */                         \
  FIELD(Tensor, query_inverse)    /* [G, N] float32 */                         \
  FIELD(Tensor, positive)         /* [G, N, padded D] prepared float32 rows */ \
  FIELD(Tensor, positive_scale)   /* [G, N] float32 */                         \
  FIELD(Tensor, positive_inverse) /* [G, N] float32 */                         \
  FIELD(Tensor, bank)             /* [G, M, D] */                              \
  FIELD(Tensor, index)            /* [G, N, k] int64 */                        \
  FIELD(double, temp)                                                          \
  FIELD(bool, normalize)
#define INFO_NCE_LOSS_FIELDS(FIELD)                           \
  INFO_NCE_FIELDS(FIELD)                                      \
  FIELD(Tensor, loss) /* [G, N] float32, a result like lse */ \
  FIELD(Tensor, lse)  /* [G, N] float64 */
ACTION_PARAMS(InfoNceParams, INFO_NCE_LOSS_FIELDS)

int32_t info_nce_launcher(const InfoNceParams& p, void* stream) {
  Checks check(kDevice, p.bank);
  InfoNce call = call_of(p, check);
  const int64_t n = call.in.queries, g = n ? call.in.total / n : 0;
  call.loss = check.contiguous<float>(p.loss, "loss", {g, n});
  if (!check.passed()) return check.status();
  auto* kernel = of_dtype(p.bank.dtype, info_nce<float>, info_nce<__half>, info_nce<__nv_bfloat16>);
  return enqueue(kernel, warp_blocks(call.in.total), 32 * kWarps, 0, stream, call);
}

#define INFO_NCE_GRADIENT_FIELDS(FIELD)                                                                \
  INFO_NCE_FIELDS(FIELD)                                                                               \
  FIELD(Tensor, lse)           /* [G, N] float64 */                                                    \
  FIELD(Tensor, grad_loss)     /* [G, N] float32 */                                                    \
  FIELD(Tensor, weights)       /* [G, N, k] float32 of the entries, a result like the next; or none */ \
  FIELD(Tensor, query_grad)    /* [G, N, D] float32, or none: not wanted */                            \
  FIELD(Tensor, positive_grad) /* [G, N, D] float32, or none */
ACTION_PARAMS(InfoNceGradientParams, INFO_NCE_GRADIENT_FIELDS)

int32_t info_nce_gradient(const InfoNceGradientParams& p, void* stream) {
  Checks check(kDevice, p.bank);
  InfoNce call = call_of(p, check);
  const int64_t n = call.in.queries, g = n ? call.in.total / n : 0;
  call.grad_loss = check.contiguous<float>(p.grad_loss, "grad_loss", {g, n});
  call.weights = check.optional<float>(p.weights, "weights", {g, n, call.in.k});
  call.query_grad = check.optional<float>(p.query_grad, "query_grad", {g, n, call.in.features});
  call.positive_grad = check.optional<float>(p.positive_grad, "positive_grad", {g, n, call.in.features});
  if (!check.passed()) return check.status();
  auto* kernel = of_dtype(p.bank.dtype, info_nce_grad<float>, info_nce_grad<__half>, info_nce_grad<__nv_bfloat16>);
  return enqueue(kernel, warp_blocks(call.in.total), 32 * kWarps, 0, stream, call);
}

}  // namespace

const Launcher kInfoNce{"info_nce", untyped<InfoNceParams, info_nce_launcher>, ACTION_LAYOUT(InfoNceParams)};
const Launcher kInfoNceGradient = ACTION_LAUNCHER(info_nce_gradient, InfoNceGradientParams);

}  // namespace action
