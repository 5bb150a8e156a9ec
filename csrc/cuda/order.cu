// The selection in its final order: the best k of a query's candidates, sorted in shared memory by a bitonic network.
#include "launch.cuh"
#include "library.cuh"
#include "select.cuh"

namespace action {
namespace {

struct Order {
  const int64_t* keys;  // [total, count]
  float* similarity;    // [total, k]
  int64_t* index;
  int64_t k;
  int count, size;  // size: the power of two that holds them
};

__global__ void __launch_bounds__(512) order(Order p) {
  int64_t* line = reinterpret_cast<int64_t*>(shared_memory);
  const int64_t row = blockIdx.x;
  for (int i = threadIdx.x; i < p.size; i += blockDim.x) line[i] = i < p.count ? p.keys[row * p.count + i] : kEmptyKey;
  for (int width = 2; width <= p.size; width *= 2) {
    for (int step = width / 2; step > 0; step /= 2) {
      __syncthreads();
      for (int i = threadIdx.x; i < p.size / 2; i += blockDim.x) {
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
    const int64_t key = i < p.size ? line[i] : kEmptyKey;
    const bool empty = key == kEmptyKey;
    p.similarity[row * p.k + i] = empty ? -INFINITY : key_similarity(key);
    p.index[row * p.k + i] = empty ? -1 : key_index(key);
  }
}

#define ORDER_KEYS_FIELDS(FIELD)                                               \
  FIELD(Tensor, keys)       /* [G, N, count] int64, at most 4096 of a query */ \
  FIELD(Tensor, similarity) /* [G, N, k] float32, a result like the next */    \
  FIELD(Tensor, index)      /* [G, N, k] int64 */
ACTION_PARAMS(OrderKeysParams, ORDER_KEYS_FIELDS)

int32_t order_keys(const OrderKeysParams& p, void* stream) {
  Checks check(kDevice, p.keys);
  const int64_t g = check.size(p.keys, "keys", 0, 3), n = check.size(p.keys, "keys", 1, 3);
  const int64_t count = check.size(p.keys, "keys", 2, 3), k = check.size(p.index, "index", 2, 3);
  if (count > 4096) check.refuse(p.keys, "keys", "at most 4096 for a query");
  int size = 1;
  while (size < count) size *= 2;
  const Order call{check.contiguous<int64_t>(p.keys, "keys", {g, n, count}),
                   check.contiguous<float>(p.similarity, "similarity", {g, n, k}),
                   check.contiguous<int64_t>(p.index, "index", {g, n, k}),
                   k,
                   static_cast<int>(count),
                   size};
  const int threads = size / 2 < 32 ? 32 : size / 2 > 512 ? 512 : size / 2;
  if (!check.passed()) return check.status();
  return enqueue(order, static_cast<unsigned>(g * n), threads, size * 8, stream, call);
}

}  // namespace

const Launcher kOrderKeys = ACTION_LAUNCHER(order_keys, OrderKeysParams);

}  // namespace action
