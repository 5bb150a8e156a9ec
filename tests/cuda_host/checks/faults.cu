// One mistake each: with `wrong` a kernel makes it, without it the kernel is sound. 64 threads; data: [64] float32.
#include "async_copy.cuh"
#include "launch.cuh"
#include "mma.cuh"

using namespace action;

extern __shared__ __align__(16) float fault_memory[];  // [64]

namespace {

constexpr unsigned kAll = 0xffffffffu;
constexpr int kThreads = 64;

__device__ int next() { return (threadIdx.x + 1) % kThreads; }
__device__ int next_lane() { return static_cast<int>(threadIdx.x / 32 * 32 + (threadIdx.x + 1) % 32); }

__global__ void exit_before_barrier(bool wrong, const float*, float*) {
  if (wrong && threadIdx.x == 5) return;
  __syncthreads();
}

__global__ void other_barrier(bool wrong, const float*, float*) {
  if (wrong && threadIdx.x >= 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void lane_never_comes(bool wrong, const float* in, float* out) {
  float x = in[threadIdx.x];
  if (!wrong || threadIdx.x != 37) x = __shfl_xor_sync(kAll, x, 1);
  out[threadIdx.x] = x;
}

__global__ void caller_not_in_mask(bool wrong, const float*, float*) { __syncwarp(wrong ? 0x0000ffffu : kAll); }

__global__ void source_not_in_mask(bool wrong, const float* in, float* out) {
  const unsigned mask = threadIdx.x % 32 < 16 ? 0x0000ffffu : 0xffff0000u;
  out[threadIdx.x] = __shfl_xor_sync(mask, in[threadIdx.x], wrong ? 16 : 8);
}

__global__ void masks_differ(bool wrong, const float* in, float* out) {
  const unsigned mask = wrong && threadIdx.x == 3 ? 0x7fffffffu : kAll;
  out[threadIdx.x] = __shfl_sync(mask, in[threadIdx.x], 0);
}

__global__ void shared_too_far(bool wrong, const float* in, float*) { fault_memory[threadIdx.x + wrong] = in[0]; }

__global__ void shared_before(bool wrong, const float* in, float*) {
  const int first = wrong ? -1 : 0;
  fault_memory[static_cast<int>(threadIdx.x) + first] = in[0];
}

__global__ void shared_array_index(bool wrong, const float* in, float* out) {
  __shared__ float rows[4][8];
  if (threadIdx.x == 0) {
    rows[0][wrong ? 8 : 7] = in[0];
    out[0] = rows[0][wrong ? 8 : 7];
  }
}

__global__ void global_too_far(bool wrong, const float* in, float* out) { out[threadIdx.x] = in[threadIdx.x + wrong]; }

__global__ void global_before(bool wrong, const float* in, float* out) {
  const int first = wrong ? -1 : 0;
  out[static_cast<int>(threadIdx.x) + first] = in[threadIdx.x];
}

__global__ void copy_too_far(bool wrong, const float* in, float*) {
  if (threadIdx.x < 16) cp_async_16(fault_memory + 4 * threadIdx.x, in + 4 * (threadIdx.x + wrong), true);
}

__global__ void misaligned(bool wrong, const float* in, float* out) {
  if (threadIdx.x == 0) out[0] = reinterpret_cast<const float4*>(in + wrong)->x;
}

__global__ void uninitialised_dynamic(bool wrong, const float* in, float* out) {
  if (!wrong || threadIdx.x != 9) fault_memory[threadIdx.x] = in[threadIdx.x];
  out[threadIdx.x] = fault_memory[threadIdx.x];
}

__global__ void uninitialised_static(bool wrong, const float* in, float* out) {
  __shared__ float total;
  if (!wrong && threadIdx.x == 0) total = in[0];
  __syncthreads();
  out[threadIdx.x] = total;
}

__global__ void uninitialised_ldmatrix(bool wrong, const float* in, float* out) {
  uint32_t r[4];
  if (!wrong || threadIdx.x != 63) fault_memory[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  if (threadIdx.x < 32) {
    ldmatrix_x4(r, fault_memory + threadIdx.x % 16 * 4);
    out[threadIdx.x] = static_cast<float>(r[3]);
  }
}

__global__ void no_wait(bool wrong, const float* in, float* out) {
  cp_async_4(fault_memory + threadIdx.x, in + threadIdx.x, true);
  cp_async_commit();
  if (!wrong) cp_async_wait<0>();
  out[threadIdx.x] = fault_memory[threadIdx.x];
}

__global__ void wait_for_too_few(bool wrong, const float* in, float* out) {
  if (threadIdx.x < 32) {
    cp_async_4(fault_memory + threadIdx.x, in + threadIdx.x, true);
    cp_async_commit();
    cp_async_4(fault_memory + 32 + threadIdx.x, in + 32 + threadIdx.x, true);
    cp_async_commit();
    cp_async_wait<1>();
    out[threadIdx.x] = fault_memory[threadIdx.x + (wrong ? 32 : 0)];
  }
}

__global__ void not_committed(bool wrong, const float* in, float* out) {
  cp_async_4(fault_memory + threadIdx.x, in + threadIdx.x, true);
  if (!wrong) cp_async_commit();
  cp_async_wait<0>();
  out[threadIdx.x] = fault_memory[threadIdx.x];
}

__global__ void no_barrier_after_wait(bool wrong, const float* in, float* out) {
  cp_async_4(fault_memory + threadIdx.x, in + threadIdx.x, true);
  cp_async_commit();
  __syncwarp();  // so that others' copies have landed here although nothing says so
  cp_async_wait<0>();
  if (!wrong) __syncthreads();
  __syncwarp();
  out[threadIdx.x] = fault_memory[(threadIdx.x + 32) % kThreads];
}

__global__ void read_after_write(bool wrong, const float* in, float* out) {
  fault_memory[threadIdx.x] = in[threadIdx.x];
  if (!wrong) __syncthreads();
  if (wrong) __syncwarp();  // not enough
  out[threadIdx.x] = fault_memory[threadIdx.x < 32 ? threadIdx.x : threadIdx.x - 32];
}

__global__ void write_after_read(bool wrong, const float* in, float* out) {
  fault_memory[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  const float x = fault_memory[next()];
  if (!wrong) __syncthreads();
  fault_memory[threadIdx.x] = x;
  out[threadIdx.x] = x;
}

// The one that writes has read last: that others have read before it must not be forgotten.
__device__ void write_after_reads(bool wrong, bool reads, bool writes, const float* in, float* out) {
  if (threadIdx.x == 0) fault_memory[0] = in[0];
  __syncthreads();
  if (reads) out[threadIdx.x] = fault_memory[0];
  if (!wrong) __syncthreads();
  if (writes) fault_memory[0] = in[1];
}

__global__ void write_after_other_lane_read(bool wrong, const float* in, float* out) {
  write_after_reads(wrong, threadIdx.x == 3 || threadIdx.x == 8, threadIdx.x == 8, in, out);
}

__global__ void write_after_other_warp_read(bool wrong, const float* in, float* out) {
  write_after_reads(wrong, threadIdx.x == 3 || threadIdx.x == 40, threadIdx.x == 40, in, out);
}

__global__ void copy_after_read(bool wrong, const float* in, float* out) {
  fault_memory[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = fault_memory[next()];
  if (!wrong) __syncthreads();
  cp_async_4(fault_memory + threadIdx.x, in + threadIdx.x, true);
}

__global__ void write_after_write(bool wrong, const float* in, float*) {
  fault_memory[wrong ? 0 : threadIdx.x] = in[threadIdx.x];
}

__global__ void no_syncwarp(bool wrong, const float* in, float* out) {
  fault_memory[threadIdx.x] = in[threadIdx.x];
  float x = __shfl_sync(kAll, in[threadIdx.x], 0);  // brings the lanes together, yet orders no memory
  if (!wrong) __syncwarp();
  out[threadIdx.x] = x + fault_memory[next_lane()];
}

__global__ void atomic_and_plain(bool wrong, const float* in, float* out) {
  fault_memory[threadIdx.x] = 0.0f;
  __syncthreads();
  atomicAdd(fault_memory, in[threadIdx.x]);
  if (!wrong) __syncthreads();
  if (threadIdx.x == 63) out[0] = fault_memory[0];
}

__global__ void global_read_after_write(bool wrong, const float* in, float* out) {
  out[threadIdx.x] = in[threadIdx.x];
  if (!wrong) __syncthreads();
  const float x = out[next()];
  __syncthreads();
  out[threadIdx.x] = x;
}

__global__ void global_write_after_read(bool wrong, const float* in, float* out) {
  out[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  const float x = out[next_lane()];
  if (!wrong) __ballot_sync(kAll, x > 0.0f);  // nobody writes before all have read
  out[threadIdx.x] = x;
}

__global__ void global_write_by_two(bool wrong, const float* in, float* out) {
  if (threadIdx.x < 2) out[wrong ? 0 : threadIdx.x] = in[threadIdx.x];
}

__global__ void overflow(bool wrong, const float*, float* out) {
  const int rows = wrong ? 1 << 20 : 1 << 10;
  out[threadIdx.x] = static_cast<float>(rows * (rows + static_cast<int>(threadIdx.x)));
}

using Kernel = void (*)(bool, const float*, float*);
struct Fault {
  const char* name;
  Kernel kernel;
};
#define FAULT(kernel) {#kernel, kernel}
const Fault faults[] = {
    FAULT(exit_before_barrier),
    FAULT(other_barrier),
    FAULT(lane_never_comes),
    FAULT(caller_not_in_mask),
    FAULT(source_not_in_mask),
    FAULT(masks_differ),
    FAULT(shared_too_far),
    FAULT(shared_before),
    FAULT(shared_array_index),
    FAULT(global_too_far),
    FAULT(global_before),
    FAULT(copy_too_far),
    FAULT(misaligned),
    FAULT(uninitialised_dynamic),
    FAULT(uninitialised_static),
    FAULT(uninitialised_ldmatrix),
    FAULT(no_wait),
    FAULT(wait_for_too_few),
    FAULT(not_committed),
    FAULT(no_barrier_after_wait),
    FAULT(read_after_write),
    FAULT(write_after_read),
    FAULT(write_after_other_lane_read),
    FAULT(write_after_other_warp_read),
    FAULT(copy_after_read),
    FAULT(write_after_write),
    FAULT(no_syncwarp),
    FAULT(atomic_and_plain),
    FAULT(global_read_after_write),
    FAULT(global_write_after_read),
    FAULT(global_write_by_two),
    FAULT(overflow),
};

// Every block adds to the same number; with `wrong` without telling anybody.
__global__ void blocks_together(bool wrong, const float* in, float* out) {
  if (threadIdx.x != 0) return;
  if (wrong) {
    *out += in[blockIdx.x];
  } else {
    atomicAdd(out, in[blockIdx.x]);
  }
}

}  // namespace

ACTION_EXPORT int check_blocks_together(int wrong, const float* in, float* out, int blocks) {
  return launch(blocks_together, blocks, kThreads, 0, nullptr, wrong != 0, in, out);
}
ACTION_EXPORT const char* check_fault_name(int number) {
  constexpr int kCount = sizeof faults / sizeof *faults;
  return number < kCount ? faults[number].name : nullptr;
}
ACTION_EXPORT int check_fault(int number, int wrong, const float* in, float* out) {
  return launch(faults[number].kernel, 1, kThreads, kThreads * 4, nullptr, wrong != 0, in, out);
}
ACTION_EXPORT int check_shared_bytes(int bytes) {
  return launch(uninitialised_dynamic, 1, kThreads, bytes, nullptr, false, nullptr, nullptr);
}
