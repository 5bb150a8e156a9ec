// Similarities with bank rows that an index names: InfoNCE over them, and the gradients of named similarities.
//
// Queries and positives come as prepared float32 rows (rows.cu); bank rows are read in place. A warp takes a query, and
// eight of its lanes a named row, so that four rows are on their way at a time. Gradients of the bank are sums over the
// entries that name a row: sorted by row, and added in the order of the queries.
#include "launch.cuh"
#include "online_softmax.cuh"
#include "rows.cuh"

namespace action {
namespace {

constexpr int kWarps = 4;
constexpr int kLanes = 8;  // for one named row
constexpr int kGroups = 32 / kLanes;  // named rows at a time

/// Rows [G, N, width] that stand for data * scale, unit vectors if normalised.
struct Prepared {
  const float* data;
  const float* scale;    // [G, N]
  const float* inverse;  // [G, N] 1 / |x|, negative where the norm did not count
};

struct Gather {
  Prepared query, positive;  // positive.data: null without one
  Matrix bank;
  const int64_t* index;  // [G, N, k]
  const float* given;    // [G, N, k] weights, or null: those of InfoNCE
  const float* grad_loss;
  double* lse;        // [G, N], a result or an input
  float* loss;        // [G, N]
  float* weights;     // [G, N, k], or null
  float* grad_query;  // [G, N, D], or null, as the next
  float* grad_positive;
  int64_t queries, rows, total;
  int k, features, width;
  double temp, inverse;  // 1 / temp
  float inverse_temp;
  bool normalize, vectors;  // vectors: bank rows can be read four features at a time
};

/// Four features of a row, zeros behind its end.
template <class T>
__device__ float4 four(const T* row, int64_t stride, int first, int features, bool vectors) {
  if (vectors) {
    if constexpr (sizeof(T) == 4) {
      return *reinterpret_cast<const float4*>(row + first);
    } else {
      struct alignas(8) Pack {
        T x[4];
      };
      const Pack pack = *reinterpret_cast<const Pack*>(row + first);
      return {as_float(pack.x[0]), as_float(pack.x[1]), as_float(pack.x[2]), as_float(pack.x[3])};
    }
  }
  float4 x{0.0f, 0.0f, 0.0f, 0.0f};
  x.x = as_float(row[first * stride]);
  if (first + 1 < features) x.y = as_float(row[(first + 1) * stride]);
  if (first + 2 < features) x.z = as_float(row[(first + 2) * stride]);
  if (first + 3 < features) x.w = as_float(row[(first + 3) * stride]);
  return x;
}

__device__ float dot(float4 a, float4 b, float sum) {
  return fmaf(a.w, b.w, fmaf(a.z, b.z, fmaf(a.y, b.y, fmaf(a.x, b.x, sum))));
}

__device__ float4 add(float4 sum, float weight, float4 x) {
  return {fmaf(weight, x.x, sum.x), fmaf(weight, x.y, sum.y), fmaf(weight, x.z, sum.z), fmaf(weight, x.w, sum.w)};
}

__device__ float largest(float4 x) { return fmaxf(fmaxf(fabsf(x.x), fabsf(x.y)), fmaxf(fabsf(x.z), fabsf(x.w))); }

/// The row that an entry names, or null.
template <class T>
__device__ const T* named_row(const Gather& p, int64_t group, int64_t named) {
  if (named < 0 || named >= p.rows) return nullptr;
  return static_cast<const T*>(p.bank.data) + group * p.bank.stride_g + named * p.bank.stride_n;
}

/// A named row against the query: similarity is that of unit rows; factor is 1 / |b|.
struct Named {
  float similarity, factor;
};

/// Compares the rows that the lanes' entries name, `count` of them; each lane gets its own. query: null if no matter.
template <class T>
__device__ Named compare(const Gather& p, int64_t group, int64_t named, int count, const float* query,
                         float query_scale) {
  const int lane = threadIdx.x % 32, place = lane % kLanes;
  float product = 0.0f, squares = 0.0f, unguard = 1.0f;
#pragma unroll 1
  for (int turn = 0; turn * kGroups < count; ++turn) {
    const T* row = named_row<T>(p, group, __shfl_sync(kAllLanes, named, turn * kGroups + lane / kLanes));
    float part = 0.0f, square = 0.0f, top = 0.0f, guard = 1.0f;
    const auto pass = [&] {
      part = square = 0.0f;
      for (int i = 4 * place; row && i < p.features; i += 4 * kLanes) {
        float4 b = four(row, p.bank.stride_d, i, p.features, p.vectors);
        top = fmaxf(top, largest(b));
        b = {b.x * guard, b.y * guard, b.z * guard, b.w * guard};
        if (query) part = dot(b, *reinterpret_cast<const float4*>(query + i), part);
        square = dot(b, b, square);
      }
    };
    pass();
    if (p.normalize && __any_sync(kAllLanes, top > 1e15f)) {  // squares that would overflow: again with smaller rows
      if (lanes_max<kLanes>(top) > 1e15f) guard = 0x1p-80f;
      pass();
    }
    const int source = lane % kGroups * kLanes;  // of those who have just had this lane's entry, if any
    part = __shfl_sync(kAllLanes, lanes_sum<kLanes>(part), source);
    square = __shfl_sync(kAllLanes, lanes_sum<kLanes>(square), source);
    guard = __shfl_sync(kAllLanes, guard, source);
    if (lane / kGroups == turn) {
      product = part;
      squares = square;
      unguard = guard < 1.0f ? 0x1p80f : 1.0f;
    }
  }
  if (!p.normalize) return {product * query_scale, 1.0f};
  const float factor = unit_factor(__fsqrt_rn(squares) * unguard);
  // The length goes in first: it brings the product near 1, whatever the row's length.
  return {similarity(product, factor * unguard, query_scale), factor};
}

__device__ float own_similarity(const Gather& p, int64_t line) {
  float sum = 0.0f;
  for (int i = threadIdx.x % 32; i < p.width; i += 32) {
    sum = fmaf(p.query.data[line * p.width + i] * p.query.scale[line],
               p.positive.data[line * p.width + i] * p.positive.scale[line], sum);
  }
  return lanes_sum(sum);
}

template <class T>
__global__ void __launch_bounds__(32 * kWarps) info_nce(Gather p) {
  const int64_t line = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (line >= p.total) return;  // whole warps
  const int64_t group = line / p.queries;
  const int lane = threadIdx.x % 32;
  const float* query = p.query.data + line * p.width;
  const float scale = p.query.scale[line], factor = p.inverse_temp * 1.44269504088896340736f;
  const float own = own_similarity(p, line);
  const int64_t* index = p.index + line * p.k;
  float top = own, total = lane == 0 ? 1.0f : 0.0f;  // the positive counts once
  for (int first = 0; first < p.k; first += 32) {
    const int count = p.k - first < 32 ? p.k - first : 32;
    const int64_t named = lane < count ? index[first + lane] : -1;
    const float similarity = compare<T>(p, group, named, count, query, scale).similarity;
    if (named >= 0 && named < p.rows) {
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

/// (g - u <u, g>) / |x| for the row whose unwritten gradient lies in `grad`; every lane has written what it reads.
__device__ void finish_row(const Gather& p, const Prepared& x, int64_t line, float* grad) {
  if (!p.normalize) return;
  const float scale = x.scale[line], inverse = x.inverse[line];
  const bool counted = !(inverse < 0.0f);  // a clamped norm is a constant; NaN counts
  const float* data = x.data + line * p.width;
  float radial = 0.0f;
  for (int i = threadIdx.x % 32; i < p.features; i += 32) radial = fmaf(data[i] * scale, grad[i], radial);
  radial = counted ? lanes_sum(radial) : 0.0f;
  for (int i = threadIdx.x % 32; i < p.features; i += 32) {
    grad[i] = (grad[i] - (counted ? radial * (data[i] * scale) : 0.0f)) * fabsf(inverse);
  }
}

/// Weights of the named similarities, `given` or those of InfoNCE, and the gradients that they make.
template <class T>
__global__ void __launch_bounds__(32 * kWarps, 4) gather_gradient(Gather p) {
  const int64_t line = int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (line >= p.total) return;
  const int64_t group = line / p.queries;
  const int lane = threadIdx.x % 32;
  const float* query = p.query.data + line * p.width;
  const float scale = p.query.scale[line], factor = p.inverse_temp * 1.44269504088896340736f;
  float slope = 0.0f, center = 0.0f, rest = 0.0f, total = 0.0f;
  if (!p.given) {
    slope = p.grad_loss[line] * p.inverse_temp;
    center = static_cast<float>(p.lse[line] * p.temp);
    rest = static_cast<float>((p.lse[line] - static_cast<double>(center) * p.inverse) * 1.4426950408889634);
  }
  float* sums = p.grad_query ? p.grad_query + line * p.features : nullptr;
  if (sums) {
    for (int i = lane; i < p.features; i += 32) sums[i] = 0.0f;
  }
  const int64_t entries = line * p.k;
  for (int first = 0; first < p.k; first += 32) {
    // Lane i keeps entry first + i: which row it names, and that row's weight.
    const bool listed = first + lane < p.k;
    const int64_t named = listed ? p.index[entries + first + lane] : -1;
    const bool valid = named >= 0 && named < p.rows;
    const int count = p.k - first < 32 ? p.k - first : 32;
    Named x{0.0f, 1.0f};
    if (!p.given || p.normalize) x = compare<T>(p, group, named, count, p.given ? nullptr : query, scale);
    float weight = 0.0f;
    if (valid && p.given) weight = p.given[entries + first + lane];
    if (valid && !p.given) {
      const float probability = exp2_fast((x.similarity - center) * factor - rest);
      weight = slope * probability;
      total += probability;
    }
    if (p.weights && listed) p.weights[entries + first + lane] = weight;
    const float raw_weight = weight * x.factor;
    if (!sums) continue;
    __syncwarp();
    for (int base = 0; base < p.features; base += 128) {
      float4 sum{0.0f, 0.0f, 0.0f, 0.0f};
      const int feature = base + 4 * lane;
      for (int e = 0; e < count; ++e) {
        const T* row = named_row<T>(p, group, __shfl_sync(kAllLanes, named, e));
        const float theirs = __shfl_sync(kAllLanes, raw_weight, e);
        if (row && feature < p.features) {
          const float4 b = four(row, p.bank.stride_d, feature, p.features, p.vectors);
          sum = add(sum, theirs, b);
        }
      }
      const float parts[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (feature + i < p.features) sums[feature + i] += parts[i];
      }
    }
    __syncwarp();
  }
  total = lanes_sum(total);
  __syncwarp();
  // d loss / d <q, p> = (p_positive - 1) / temp, which is minus the other probabilities.
  const float away = slope * total;
  if (sums) {
    if (!p.given) {
      const float* positive = p.positive.data + line * p.width;
      for (int i = lane; i < p.features; i += 32) sums[i] -= away * (positive[i] * p.positive.scale[line]);
    }
    finish_row(p, p.query, line, sums);
  }
  if (p.grad_positive) {
    float* grad = p.grad_positive + line * p.features;
    for (int i = lane; i < p.features; i += 32) grad[i] = -away * (query[i] * scale);
    finish_row(p, p.positive, line, grad);
  }
}

struct Scatter {
  Prepared query;
  Matrix bank;
  const int64_t* order;   // [G, N k] entries sorted by the row they name
  const int64_t* starts;  // [G, M + 1] where each row's begin
  const float* weights;   // [G, N, k]
  float* grad_bank;       // [G, M, D]
  int64_t queries, rows, total, k;
  int features, width;
  bool normalize;
};

/// grad_j = sum of weights[e] unit(query of e) over the entries e that name j. A block per row of the bank; its warps
/// share the entries, and add up in their own order.
template <class T>
__global__ void __launch_bounds__(32 * kWarps) scatter_gradient(Scatter p) {
  float4* partial = reinterpret_cast<float4*>(shared_memory);  // [kWarps, 32]
  const int64_t line = blockIdx.x, group = line / p.rows, row = line % p.rows;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t* bounds = p.starts + group * (p.rows + 1) + row;
  const int64_t begin = bounds[0], count = bounds[1] - begin;
  const int64_t span = (count + kWarps - 1) / kWarps, end = (warp + 1) * span < count ? (warp + 1) * span : count;
  const int64_t* order = p.order + group * p.queries * p.k + begin;
  const float* weights = p.weights + group * p.queries * p.k;
  const T* raw = static_cast<const T*>(p.bank.data) + group * p.bank.stride_g + row * p.bank.stride_n;
  float* out = p.grad_bank + line * p.features;

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
      const float weight = weights[entry] * p.query.scale[query];
      if (feature < p.width) {
        const float4 q = *reinterpret_cast<const float4*>(p.query.data + query * p.width + feature);
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

/// Whether rows can be read four features at a time.
bool vector_rows(const Matrix& x, int dtype, int features) {
  const int64_t bytes = dtype == 0 ? 16 : 8;
  return x.stride_d == 1 && features % 4 == 0 && x.stride_n % 4 == 0 && x.stride_g % 4 == 0 &&
         reinterpret_cast<uintptr_t>(x.data) % bytes == 0;
}

unsigned blocks(int64_t lines) { return static_cast<unsigned>((lines + kWarps - 1) / kWarps); }

}  // namespace
}  // namespace action

using namespace action;

/// Prepared rows come as (data, scale, inverse). Without `loss` the gradients are computed, else the loss.
ACTION_EXPORT int action_gather(const float* query, const float* query_scale, const float* query_inverse,
                                const float* positive, const float* positive_scale, const float* positive_inverse,
                                const void* bank, int dtype, int64_t stride_g, int64_t stride_n, int64_t stride_d,
                                const int64_t* index, const float* given, const float* grad_loss, double* lse,
                                float* loss, float* weights, float* grad_query, float* grad_positive, int64_t groups,
                                int64_t queries, int64_t rows, int k, int features, int width, double temp,
                                int normalize, void* stream) {
  Gather p{{query, query_scale, query_inverse},
           {positive, positive_scale, positive_inverse},
           {bank, stride_g, stride_n, stride_d},
           index, given, grad_loss, lse, loss, weights, grad_query, grad_positive,
           queries, rows, groups * queries, k, features, width,
           temp, 1.0 / temp, static_cast<float>(1.0 / temp), normalize != 0, false};
  p.vectors = vector_rows(p.bank, dtype, features);
  auto* kernel = loss ? info_nce<float> : gather_gradient<float>;
  if (dtype == 1) kernel = loss ? info_nce<__half> : gather_gradient<__half>;
  if (dtype == 2) kernel = loss ? info_nce<__nv_bfloat16> : gather_gradient<__nv_bfloat16>;
  return launch(kernel, blocks(p.total), 32 * kWarps, 0, stream, p);
}

ACTION_EXPORT int action_scatter(const float* query, const float* query_scale, const void* bank, int dtype,
                                 int64_t stride_g, int64_t stride_n, int64_t stride_d, const int64_t* order,
                                 const int64_t* starts, const float* weights, float* grad_bank, int64_t groups,
                                 int64_t queries, int64_t rows, int64_t k, int features, int width, int normalize,
                                 void* stream) {
  const Scatter p{{query, query_scale, nullptr}, {bank, stride_g, stride_n, stride_d}, order, starts, weights,
                  grad_bank, queries, rows, groups * rows, k, features, width, normalize != 0};
  auto* kernel = dtype == 1 ? scatter_gradient<__half>
                            : dtype == 2 ? scatter_gradient<__nv_bfloat16> : scatter_gradient<float>;
  return launch(kernel, static_cast<unsigned>(p.total), 32 * kWarps, 32 * kWarps * sizeof(float4), stream, p);
}
