// Putting the keys of a selection by the buffer alone into order: a block per query.
#include "passes.cuh"

namespace action {
namespace {

constexpr int kMostThreads = 512;

__global__ void __launch_bounds__(kMostThreads) order_lines(Selected out, int64_t* all, int64_t line, int count) {
  int64_t* keys = all + blockIdx.x * line;
  if (count > kSorted && out.k <= kSorted) {
    if (threadIdx.x < 32) shorten(keys, count, static_cast<int>(out.k));
    count = static_cast<int>(out.k);
  }
  order_line(out, blockIdx.x, keys, count);
}

}  // namespace

void order(Queue& queue, const Selected& out, int64_t* keys, int64_t lines, int64_t line, int64_t count) {
  const int64_t in_shared = count < kSorted ? count : kSorted;
  int threads = 32;
  while (threads < kMostThreads && 2 * threads < in_shared) threads *= 2;
  queue.enqueue("order", order_lines, lines, threads, in_shared * 8, out, keys, line, static_cast<int>(count));
}

}  // namespace action
