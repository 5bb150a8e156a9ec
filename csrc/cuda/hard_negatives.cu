// The gradient of selected similarities in the queries. (The selection itself is bank_pass.cu's; the gradient in the
// bank is indexed_rows.cu's.)
#include "indexed_rows.cuh"
#include "library.cuh"

namespace action {
namespace {

struct Selected {
  Indexed in;
  const float* weights;  // [G, N, k]
  float* query_grad;     // [G, N, D]
};

/// grad_i = sum of weights[i, e] unit(bank row that entry e names).
template <class T>
__global__ void __launch_bounds__(32 * kWarps, 4) query_grad(Selected p) {
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

#define SELECTED_QUERY_GRADIENT_FIELDS(FIELD)                               \
  FIELD(Tensor, query)         /* [G, N, padded D] prepared float32 rows */ \
  FIELD(Tensor, query_scale)   /* [G, N] float32 */                         \
  FIELD(Tensor, query_inverse) /* [G, N] float32 */                         \
  FIELD(Tensor, bank)          /* [G, M, D] */                              \
  FIELD(Tensor, index)         /* [G, N, k] int64 */                        \
  FIELD(bool, normalize)                                                    \
  FIELD(Tensor, weights)    /* [G, N, k] float32 */                         \
  FIELD(Tensor, query_grad) /* [G, N, D] float32, the result */
ACTION_PARAMS(SelectedQueryGradientParams, SELECTED_QUERY_GRADIENT_FIELDS)

int32_t selected_query_gradient(const SelectedQueryGradientParams& p, void* stream) {
  Checks check(kDevice, p.bank);
  Selected call{indexed_of(p, check), nullptr, nullptr};
  const int64_t n = call.in.queries, g = n ? call.in.total / n : 0;
  call.weights = check.contiguous<float>(p.weights, "weights", {g, n, call.in.k});
  call.query_grad = check.contiguous<float>(p.query_grad, "query_grad", {g, n, call.in.features});
  if (!check.passed()) return check.status();
  auto* kernel = of_dtype(p.bank.dtype, query_grad<float>, query_grad<__half>, query_grad<__nv_bfloat16>);
  return enqueue(kernel, warp_blocks(call.in.total), 32 * kWarps, 0, stream, call);
}

}  // namespace

const Launcher kSelectedQueryGradient = ACTION_LAUNCHER(selected_query_gradient, SelectedQueryGradientParams);

}  // namespace action
