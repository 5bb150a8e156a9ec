// The selection in its final order: the best k of a query's candidates, sorted in shared memory by a bitonic network.
#include "launch.cuh"
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

}  // namespace
}  // namespace action

using namespace action;

/// count: at most 4096 candidates a query.
ACTION_EXPORT int action_order(const int64_t* keys, int64_t total, int count, int64_t k, float* similarity,
                               int64_t* index, void* stream) {
  int size = 1;
  while (size < count) size *= 2;
  const int threads = size / 2 < 32 ? 32 : size / 2 > 512 ? 512 : size / 2;
  const Order p{keys, similarity, index, k, count, size};
  return launch(order, static_cast<unsigned>(total), threads, size * 8, stream, p);
}
