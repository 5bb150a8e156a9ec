// Bank rows that an index names: a warp handles a query, and eight of its lanes handle a row, so that four rows are
// loaded at a time. Queries and positives come as prepared float32 rows (prepare.cu); bank rows are read in place.
#pragma once

#include "call.cuh"
#include "online_softmax.cuh"
#include "prepare.cuh"
#include "rows.cuh"

namespace action {
namespace {

constexpr int kWarps = 4;
constexpr int kLanes = 8;             // for one row of the bank
constexpr int kGroups = 32 / kLanes;  // rows at a time

/// Rows [G, N, width] that stand for data * scale, unit vectors if normalised.
struct Prepared {
  const float* data;
  const float* scale;    // [G, N]
  const float* inverse;  // [G, N] 1 / |x|, negative where the norm did not count
};

/// What every kernel over indexed rows needs.
struct Indexed {
  Prepared query;
  Matrix bank;
  const int64_t* index;  // [G, N, k]
  int64_t queries, rows, total;
  int k, features, width;
  bool normalize, vectors;  // vectors: bank rows can be read four features at a time
};

/// Four features of a row; zeros beyond its end.
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
__device__ const T* indexed_row(const Indexed& p, int64_t group, int64_t named) {
  if (named < 0 || named >= p.rows) return nullptr;
  return static_cast<const T*>(p.bank.data) + group * p.bank.stride_g + named * p.bank.stride_n;
}

/// An indexed row against the query: `similarity` is that of unit rows, `factor` is 1 / |b|.
struct Compared {
  float similarity, factor;
};

/// Compares the rows that the lanes' entries name, `count` of them; each lane gets its own. Without a query (null) only
/// the factors are found.
template <class T>
__device__ Compared compare(const Indexed& p, int64_t group, int64_t named, int count, const float* query,
                            float query_scale) {
  const int lane = threadIdx.x % 32, place = lane % kLanes;
  float product = 0.0f, squares = 0.0f, unguard = 1.0f;
#pragma unroll 1
  for (int turn = 0; turn * kGroups < count; ++turn) {
    const T* row = indexed_row<T>(p, group, __shfl_sync(kAllLanes, named, turn * kGroups + lane / kLanes));
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
    const int source = lane % kGroups * kLanes;  // lanes that have just read this lane's entry, if any have
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
  // Multiply by the length's inverse first: that brings the product near 1, however long the row is.
  return {similarity(product, factor * unguard, query_scale), factor};
}

/// (g - u <u, g>) / |x| for the row whose unwritten gradient lies in `grad`; every lane has written what it reads.
__device__ void finish_row(const Indexed& p, const Prepared& x, int64_t line, float* grad) {
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

/// sums += the sum over a batch of entries of weight times its row; lane i has entry i's row and weight.
template <class T>
__device__ void add_rows(const Indexed& p, int64_t group, int64_t named, int count, float weight, float* sums) {
  const int lane = threadIdx.x % 32;
  __syncwarp();
  for (int base = 0; base < p.features; base += 128) {
    float4 sum{0.0f, 0.0f, 0.0f, 0.0f};
    const int feature = base + 4 * lane;
    for (int e = 0; e < count; ++e) {
      const T* row = indexed_row<T>(p, group, __shfl_sync(kAllLanes, named, e));
      const float theirs = __shfl_sync(kAllLanes, weight, e);
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

/// Whether rows can be read four features at a time.
bool vector_rows(const Tensor& x) {
  const int64_t bytes = x.dtype == Dtype::float32 ? 16 : 8;
  return x.strides[2] == 1 && x.sizes[2] % 4 == 0 && x.strides[1] % 4 == 0 && x.strides[0] % 4 == 0 &&
         reinterpret_cast<uintptr_t>(x.data) % bytes == 0;
}

int64_t warp_blocks(int64_t lines) { return ceil_div(lines, kWarps); }

/// Rows to be compared with indexed ones: their memory, and how they are prepared.
Prepared prepared_rows(Workspace& memory, const Tensor& x, int width, RowSet& set) {
  const int64_t lines = x.sizes[0] * x.sizes[1];
  float* data = memory.take<float>(lines * width);
  float* scale = memory.take<float>(lines);
  float* inverse = memory.take<float>(lines);
  set = row_set(x, data, scale, x.sizes[1]);
  set.inverse = inverse;
  return {data, scale, inverse};
}

/// Prepares queries, and positives where there are some.
Indexed prepare_indexed(Call& call, const Shape& shape, const Tensor& query, const Tensor& positive, const Tensor& bank,
                        const int64_t* index, int64_t k, bool normalize, Prepared* positives) {
  const int features = static_cast<int>(shape.features), width = static_cast<int>(ceil_div(features, 4) * 4);
  Prepare all{};
  Indexed in{prepared_rows(call.memory, query, width, all.sets[0]),
             matrix_of(bank),
             index,
             shape.queries,
             shape.rows,
             shape.groups * shape.queries,
             static_cast<int>(k),
             features,
             width,
             normalize,
             vector_rows(bank)};
  if (positive.given()) *positives = prepared_rows(call.memory, positive, width, all.sets[1]);
  all.features = features;
  all.width = width;
  all.normalize = normalize;
  prepare(call.queue, all, Dtype::float32);
  return in;
}

}  // namespace

/// The gradient of indexed similarities in the bank (indexed_rows.cu).
struct IndexedBankGradient {
  const float* query;        // [G, N, width] prepared rows
  const float* query_scale;  // [G, N]
  Matrix bank;
  const int64_t* order;   // [G, N k] entries sorted by the row they name
  const int64_t* starts;  // [G, M + 1] where each row's begin
  const float* weights;   // [G, N, k]
  float* result;          // [G, M, D]
  int64_t queries, rows, total, k;
  int features, width;
  bool normalize;
};

void indexed_bank_gradient(Queue& queue, const IndexedBankGradient& p, Dtype dtype);

/// Its parameters where it goes with other gradients of the same call; the sorted entries are checked.
template <class Params>
IndexedBankGradient indexed_bank_gradient_of(const Params& p, Checks& check, const Shape& shape, int64_t k) {
  const auto [g, n, m, d] = shape;
  IndexedBankGradient bank{};
  if (!p.bank_grad.given()) return bank;
  bank.bank = matrix_of(p.bank);
  bank.order = check.contiguous<int64_t>(p.order, "order", {g, n * k});
  bank.starts = check.contiguous<int64_t>(p.starts, "starts", {g, m + 1});
  bank.result = check.contiguous<float>(p.bank_grad, "bank_grad", {g, m, d});
  bank.queries = n;
  bank.rows = m;
  bank.total = g * m;
  bank.k = k;
  bank.features = static_cast<int>(d);
  bank.normalize = p.normalize;
  return bank;
}

}  // namespace action
