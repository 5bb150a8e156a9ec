// The gradient of indexed similarities in the bank: sums over the entries that name a row, sorted by row and added in
// the order of the queries.
#include "indexed_rows.cuh"

namespace action {
namespace {

/// grad_j = sum of weights[e] unit(query of e) over the entries e that name j. A block per bank row; its warps
/// divide the entries among them, and their sums are added in a fixed order.
template <class T>
__global__ void __launch_bounds__(32 * kWarps) indexed_bank_grad(IndexedBankGradient p) {
  float4* partial = reinterpret_cast<float4*>(shared_memory);  // [kWarps, 32]
  const int64_t line = blockIdx.x, group = line / p.rows, row = line % p.rows;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t* bounds = p.starts + group * (p.rows + 1) + row;
  const int64_t begin = bounds[0], count = bounds[1] - begin;
  const int64_t span = (count + kWarps - 1) / kWarps, end = (warp + 1) * span < count ? (warp + 1) * span : count;
  const int64_t* order = p.order + group * p.queries * p.k + begin;
  const float* weights = p.weights + group * p.queries * p.k;
  const T* raw = static_cast<const T*>(p.bank.data) + group * p.bank.stride_g + row * p.bank.stride_n;
  float* out = p.result + line * p.features;

  float factor = 1.0f, radial = 0.0f;
  bool counted = false;
  if (p.normalize) {
    Squares squares;
    for (int i = lane; i < p.features; i += 32) squares.add(as_float(raw[i * p.bank.stride_d]));
    const float norm = squares.norm();
    factor = unit_factor(norm);
    counted = norm > kSmallestNorm;
  }
  for (int base = 0; base < p.features; base += 128) {
    const int feature = base + 4 * lane;
    float4 sum{0.0f, 0.0f, 0.0f, 0.0f};
    for (int64_t i = warp * span; i < end; ++i) {
      const int64_t entry = order[i], query = group * p.queries + entry / p.k;
      const float weight = weights[entry] * p.query_scale[query];
      if (feature < p.width) {
        const float4 q = *reinterpret_cast<const float4*>(p.query + query * p.width + feature);
        sum = add(sum, weight, q);
      }
    }
    partial[threadIdx.x] = sum;
    __syncthreads();
    if (warp == 0) {
#pragma unroll
      for (int other = 1; other < kWarps; ++other) {
        const float4 x = partial[32 * other + lane];
        sum = {sum.x + x.x, sum.y + x.y, sum.z + x.z, sum.w + x.w};
      }
      const float parts[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (feature + i < p.features) {
          out[feature + i] = parts[i];
          if (counted) radial = fmaf(as_float(raw[(feature + i) * p.bank.stride_d]) * factor, parts[i], radial);
        }
      }
    }
    __syncthreads();
  }
  if (warp != 0 || !p.normalize) return;
  radial = lanes_sum(radial);
  for (int base = 4 * lane; base < p.features; base += 128) {
    for (int i = base; i < base + 4 && i < p.features; ++i) {
      const float unit = as_float(raw[i * p.bank.stride_d]) * factor;
      out[i] = (out[i] - (counted ? radial * unit : 0.0f)) * factor;
    }
  }
}

}  // namespace

void indexed_bank_gradient(Queue& queue, const IndexedBankGradient& p, Dtype dtype) {
  auto* kernel = of_dtype(dtype, indexed_bank_grad<float>, indexed_bank_grad<__half>, indexed_bank_grad<__nv_bfloat16>);
  queue.enqueue("indexed_bank_grad", kernel, p.total, 32 * kWarps, 32 * kWarps * sizeof(float4), p);
}

}  // namespace action
