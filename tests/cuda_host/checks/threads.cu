// What threads do together: warp operations, a sum over several warps, atomics; and conversions of 16-bit types.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "launch.cuh"

using namespace action;

extern __shared__ float parts[];  // one for each warp

namespace {

constexpr unsigned kAll = 0xffffffffu;
constexpr int kOperations = 14;

// values: [threads]; out: [threads, kOperations]
__global__ void warp_operations(const int* values, int* out) {
  const int lane = threadIdx.x % 32, value = values[threadIdx.x];
  int* row = out + threadIdx.x * kOperations;
  row[0] = __shfl_sync(kAll, value, 7);
  row[1] = __shfl_sync(kAll, value, lane + 3, 8);
  row[2] = __shfl_up_sync(kAll, value, 5);
  row[3] = __shfl_down_sync(kAll, value, 2, 16);
  row[4] = __shfl_xor_sync(kAll, value, 9);
  row[5] = static_cast<int>(__ballot_sync(kAll, value & 1));
  row[6] = __any_sync(kAll, value == 3);
  row[7] = __all_sync(kAll, value >= 0);
  row[8] = static_cast<int>(__match_any_sync(kAll, value));
  row[9] = __reduce_add_sync(kAll, value);
  row[10] = __reduce_min_sync(kAll, value);
  row[11] = __reduce_max_sync(kAll, value);
  row[12] = static_cast<int>(__reduce_or_sync(kAll, static_cast<unsigned>(value)));
  const unsigned half = lane < 16 ? 0x0000ffffu : 0xffff0000u;  // two halves, each at its own pace
  row[13] = 0;
  for (int i = 0; i < (lane < 16 ? 3 : 5); ++i) row[13] += __shfl_xor_sync(half, value, 1);
}

// total: [blocks]; also counts, in whatever order threads come.
__global__ void block_sum(const float* values, int n, float* total, int* largest, unsigned long long* count) {
  __shared__ int shared_largest;
  const int i = blockIdx.x * blockDim.x + threadIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (threadIdx.x == 0) shared_largest = -1;
  float x = i < n ? values[i] : 0.0f;
  for (int step = 16; step > 0; step /= 2) x += __shfl_down_sync(kAll, x, step);
  if (lane == 0) parts[warp] = x;
  __syncthreads();
  if (i < n) atomicMax(&shared_largest, static_cast<int>(values[i]));
  if (warp == 0) {
    x = lane < blockDim.x / 32 ? parts[lane] : 0.0f;
    for (int step = 16; step > 0; step /= 2) x += __shfl_down_sync(kAll, x, step);
    if (lane == 0) total[blockIdx.x] = x;
  }
  if (__syncthreads_count(i < n) > 0 && threadIdx.x == 0) atomicMax(largest, shared_largest);
  if (i < n) atomicAdd(count, 1ull);
}

__global__ void convert(const float* x, int n, uint16_t* half_bits, uint16_t* bfloat_bits) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  half_bits[i] = __half_as_ushort(__float2half_rn(x[i]));
  bfloat_bits[i] = __bfloat16_as_ushort(__float2bfloat16_rn(x[i]));
}

__global__ void widen(const uint16_t* bits, int n, float* from_half, float* from_bfloat) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  from_half[i] = __half2float(__ushort_as_half(bits[i]));
  from_bfloat[i] = __bfloat162float(__ushort_as_bfloat16(bits[i]));
}

__global__ void bits(const unsigned* x, int n, int* out) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  out[5 * i] = __popc(x[i]);
  out[5 * i + 1] = __ffs(static_cast<int>(x[i]));
  out[5 * i + 2] = __clz(static_cast<int>(x[i]));
  out[5 * i + 3] = static_cast<int>(__brev(x[i]));
  out[5 * i + 4] = static_cast<int>(__umulhi(x[i], 0xD2511F53u));
}

}  // namespace

ACTION_EXPORT int check_warp_operations(const int* values, int* out, int threads) {
  return launch(warp_operations, 1, threads, 0, nullptr, values, out);
}
ACTION_EXPORT int check_block_sum(const float* values, int n, float* total, int* largest, unsigned long long* count,
                                  int threads) {
  return launch(block_sum, (n + threads - 1) / threads, threads, threads / 32 * 4, nullptr, values, n, total, largest,
                count);
}
ACTION_EXPORT int check_convert(const float* x, int n, uint16_t* half_bits, uint16_t* bfloat_bits) {
  return launch(convert, (n + 255) / 256, 256, 0, nullptr, x, n, half_bits, bfloat_bits);
}
ACTION_EXPORT int check_widen(const uint16_t* narrow, int n, float* from_half, float* from_bfloat) {
  return launch(widen, (n + 255) / 256, 256, 0, nullptr, narrow, n, from_half, from_bfloat);
}
ACTION_EXPORT int check_bits(const unsigned* x, int n, int* out) {
  return launch(bits, (n + 63) / 64, 64, 0, nullptr, x, n, out);
}
