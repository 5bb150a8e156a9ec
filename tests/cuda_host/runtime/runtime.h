// What kernels compiled for the host ask of the harness: meeting points, checked memory, asynchronous copies.
#pragma once

#include <cstddef>
#include <cstdint>

namespace cuda_host {

constexpr int kWarpSize = 32;
constexpr size_t kSharedLimit = 232448;  // bytes a block can opt in to on sm_90 and sm_100

struct Site {
  const char* file;
  int line;
};

// A default argument of every operation that a thread can wait in: the caller's place in the source.
#define CUDA_HOST_SITE ::cuda_host::Site site = {__builtin_FILE(), __builtin_LINE()}

// ---- meeting points

// Called once, by the last lane to arrive: `in` and `out` hold each lane's own pointers, null for lanes outside `mask`.
using Compute = void (*)(unsigned mask, const void* const* in, void* const* out);

// Waits until every lane of `mask` has come to the same operation with the same mask.
void meet_warp(const char* operation, unsigned mask, const void* in, void* out, Compute compute, bool orders_memory,
               Site site);

// Waits for all threads of the block; returns how many came with a true predicate.
int meet_block(const char* operation, bool predicate, Site site);

unsigned lane();

// A shuffle asked for the value of a lane that is not in the mask. Does not return.
void absent_source(unsigned mask, int lane, int source);

// ---- memory

enum class Access { kRead, kWrite, kAtomic };

// Reports and does not return if the current thread may not do this; remembers it for later accesses otherwise.
void check_access(const void* address, size_t bytes, Access access, const void* code);
void check_alignment(const char* operation, const void* address, size_t alignment, const void* code);

// From here on kernels may use this part of a buffer and none that was not carved from it; nothing is in it.
void carve(void* begin, size_t bytes);

// ---- asynchronous copies

// Copies `valid` of `bytes` bytes and zeros the rest, at the wait that covers the current group.
void async_copy(void* shared, const void* global, int bytes, int valid, const void* code);
void async_commit();
void async_wait(int groups_left);

}  // namespace cuda_host
