// Putting the keys of a selection by the buffer alone into order: a block per query.
#include "launch.cuh"
#include "library.cuh"
#include "order.cuh"

namespace action {
namespace {

constexpr int kMostThreads = 512;

__global__ void __launch_bounds__(kMostThreads) order(Selected out, int64_t* all, int64_t line, int count) {
  int64_t* keys = all + blockIdx.x * line;
  if (count > kSorted && out.k <= kSorted) {
    if (threadIdx.x < 32) shorten(keys, count, static_cast<int>(out.k));
    count = static_cast<int>(out.k);
  }
  order_line(out, blockIdx.x, keys, count);
}

#define ORDER_KEYS_FIELDS(FIELD)                                                                       \
  FIELD(Tensor, keys)       /* [G, N, count or more] int64; lines longer than 4096 lose their order */ \
  FIELD(int64_t, count)     /* of a line */                                                            \
  FIELD(Tensor, similarity) /* [G, N, k] float32, a result like the next */                            \
  FIELD(Tensor, index)      /* [G, N, k] int64 */
ACTION_PARAMS(OrderKeysParams, ORDER_KEYS_FIELDS)

int32_t order_keys(const OrderKeysParams& p, void* stream) {
  Checks check(kDevice, p.keys);
  const int64_t g = check.size(p.keys, "keys", 0, 3), n = check.size(p.keys, "keys", 1, 3);
  const int64_t line = check.size(p.keys, "keys", 2, 3);
  check.require(p.count > 0 && p.count <= line && line <= INT32_MAX / 2, "count must be positive and fit the keys");
  int64_t* keys = check.contiguous<int64_t>(p.keys, "keys", {g, n, line});
  const Selected out = selected_of(check, p.similarity, p.index, g, n);
  if (!check.passed()) return check.status();
  const int count = static_cast<int>(p.count), in_shared = count < kSorted ? count : kSorted;
  int threads = 32;
  while (threads < kMostThreads && 2 * threads < in_shared) threads *= 2;
  return enqueue(order, static_cast<unsigned>(g * n), threads, in_shared * 8, stream, out, keys, line, count);
}

}  // namespace

const Launcher kOrderKeys = ACTION_LAUNCHER(order_keys, OrderKeysParams);

}  // namespace action
