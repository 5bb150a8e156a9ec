// Asynchronous copies from global to shared memory. A thread sees its copies after it has waited for
// their group; other threads see them after a barrier that follows the wait.
#pragma once

#include <cstdint>

#ifdef ACTION_CUDA_HOST
#include "host_async_copy.h"
#else

namespace action {

/// 16 bytes, both addresses aligned to 16; zeros where not `valid`, and then the source is not read.
__device__ __forceinline__ void cp_async_16(void* shared, const void* global, bool valid) {
  const auto target = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(target), "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}

/// 4 bytes, aligned to 4.
__device__ __forceinline__ void cp_async_4(void* shared, const void* global, bool valid) {
  const auto target = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(target), "l"(global), "r"(valid ? 4 : 0)
               : "memory");
}

/// Ends a group: the copies since the last one.
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

/// Waits until at most the last GROUPS groups of this thread are still in flight.
template <int GROUPS>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
}

}  // namespace action

#endif
