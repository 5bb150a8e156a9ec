// The selection in its final order: the best k of a query's keys, sorted in shared memory by a bitonic network.
#include "launch.cuh"
#include "library.cuh"
#include "select.cuh"

namespace action {
namespace {

constexpr int kSorted = 4096;  // keys of a query that a block puts into order

struct Order {
  int64_t* keys;      // [total, line]
  const int* found;   // [total] keys of a line; -1, or null: `count`
  float* similarity;  // [total, k]
  int64_t* index;
  int64_t k, line;
  int count;
};

__device__ __host__ inline int power_of_two(int count) {
  int size = 1;
  while (size < count) size *= 2;
  return size;
}

/// Moves the best k of a line, some of whose keys may be empty, to its front; how many there are. Work of one warp.
__device__ int best_first(int64_t* keys, int count, int k) {
  return keep_best(keys, keep_from(keys, count, keys, kEmptyKey + 1), keys, k, k, 0.0f).count;
}

__global__ void __launch_bounds__(512) order(Order p) {
  int64_t* line = reinterpret_cast<int64_t*>(shared_memory);
  const int64_t row = blockIdx.x;
  int64_t* keys = p.keys + row * p.line;
  int count = p.found ? p.found[row] : p.count;
  if (count < 0) count = p.count;
  if (count > kSorted) {
    if (threadIdx.x < 32) {
      const int kept = best_first(keys, count, static_cast<int>(p.k));
      if (threadIdx.x == 0) line[0] = kept;
    }
    __syncthreads();
    count = static_cast<int>(line[0]);
    __syncthreads();
  }
  const int size = power_of_two(count);
  for (int i = threadIdx.x; i < size; i += blockDim.x) line[i] = i < count ? keys[i] : kEmptyKey;
  for (int width = 2; width <= size; width *= 2) {
    for (int step = width / 2; step > 0; step /= 2) {
      __syncthreads();
      for (int i = threadIdx.x; i < size / 2; i += blockDim.x) {
        const int low = i / step * 2 * step + i % step, high = low + step;
        const bool descending = (low & width) == 0;
        const int64_t a = line[low], b = line[high];
        if ((a < b) == descending) {
          line[low] = b;
          line[high] = a;
        }
      }
    }
  }
  __syncthreads();
  for (int64_t i = threadIdx.x; i < p.k; i += blockDim.x) {
    const int64_t key = i < size ? line[i] : kEmptyKey;
    const bool empty = key == kEmptyKey;
    p.similarity[row * p.k + i] = empty ? -INFINITY : key_similarity(key);
    p.index[row * p.k + i] = empty ? -1 : key_index(key);
  }
}

#define ORDER_KEYS_FIELDS(FIELD)                                                                       \
  FIELD(Tensor, keys)       /* [G, N, count or more] int64; lines longer than 4096 lose their order */ \
  FIELD(Tensor, found)      /* [G, N] int32 keys of a line; -1, or none: count */                      \
  FIELD(int64_t, count)     /* at most 4096, or k is */                                                \
  FIELD(Tensor, similarity) /* [G, N, k] float32, a result like the next */                            \
  FIELD(Tensor, index)      /* [G, N, k] int64 */
ACTION_PARAMS(OrderKeysParams, ORDER_KEYS_FIELDS)

int32_t order_keys(const OrderKeysParams& p, void* stream) {
  Checks check(kDevice, p.keys);
  const int64_t g = check.size(p.keys, "keys", 0, 3), n = check.size(p.keys, "keys", 1, 3);
  const int64_t line = check.size(p.keys, "keys", 2, 3), k = check.size(p.index, "index", 2, 3);
  check.require(p.count >= 0 && p.count <= line && line <= INT32_MAX && (p.count <= kSorted || k <= kSorted),
                "count must be at most 4096 or select as few, and fit the keys");
  const Order call{check.contiguous<int64_t>(p.keys, "keys", {g, n, line}),
                   check.optional<int32_t>(p.found, "found", {g, n}),
                   check.contiguous<float>(p.similarity, "similarity", {g, n, k}),
                   check.contiguous<int64_t>(p.index, "index", {g, n, k}),
                   k,
                   line,
                   static_cast<int>(p.count)};
  const int64_t most = p.found.given() ? line : p.count;
  const int size = power_of_two(static_cast<int>(most < kSorted ? most : kSorted));
  const int threads = size / 2 < 32 ? 32 : size / 2 > 512 ? 512 : size / 2;
  if (!check.passed()) return check.status();
  return enqueue(order, static_cast<unsigned>(g * n), threads, size * 8, stream, call);
}

}  // namespace

const Launcher kOrderKeys = ACTION_LAUNCHER(order_keys, OrderKeysParams);

}  // namespace action
