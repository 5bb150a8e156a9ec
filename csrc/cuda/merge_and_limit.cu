// Between the passes, one launch: splits' sums become statistics, group maxima become the selection's limits.
//
// Neither reads what the other writes: the first blocks do the one, the others the other.
#include "passes.cuh"

namespace action {
namespace {

constexpr int kBlockThreads = 128;
constexpr int kWarps = kBlockThreads / 32;

__global__ void __launch_bounds__(kBlockThreads) merge_and_limit_rows(unsigned merging, Merge merge, Limits limits) {
  if (blockIdx.x < merging) {
    const int64_t row = int64_t{blockIdx.x} * kBlockThreads + threadIdx.x;
    if (row < merge.total) merge_row(merge, row);
  } else {
    const int64_t row = int64_t{blockIdx.x - merging} * kWarps + threadIdx.x / 32;
    if (row < limits.total) find_limit(limits, row);  // whole warps
  }
}

}  // namespace

void merge_and_limit(Queue& queue, const Merge& merge, const Limits& limits) {
  const int64_t merging = ceil_div(merge.total, kBlockThreads), count = merging + ceil_div(limits.total, kWarps);
  queue.enqueue("merge_and_limit", merge_and_limit_rows, count, kBlockThreads, 0, static_cast<unsigned>(merging), merge,
                limits);
}

}  // namespace action
