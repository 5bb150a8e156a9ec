// The last of several blocks to come to a place: what all of them have written is there for it to go on with.
#pragma once

namespace action {

/// Whether this block is the last of `number` that count themselves in `arrived`, which was zero; known to all of its
/// threads. The last one sees what the others had written before they came.
__device__ inline bool is_last_block(int* arrived, int64_t number) {
  __threadfence();
  __syncthreads();
  const bool last = threadIdx.x == 0 && atomicAdd(arrived, 1) == number - 1;
  if (!__syncthreads_or(last)) return false;
  __threadfence();
  return true;
}

}  // namespace action
