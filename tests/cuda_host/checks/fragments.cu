// Tensor-core wrappers with registers from outside: a warp multiplies what each lane was given.
#include "async_copy.cuh"
#include "launch.cuh"
#include "mma.cuh"

using namespace action;

namespace {

enum Kind { kFloat16, kBfloat16, kTf32 };

__global__ void multiply(int kind, const uint32_t* a, const uint32_t* b, float* c) {
  const int lane = threadIdx.x;
  float sums[4];
  uint32_t left[4], right[2];
  for (int i = 0; i < 4; ++i) sums[i] = c[4 * lane + i];
  for (int i = 0; i < 4; ++i) left[i] = a[4 * lane + i];
  for (int i = 0; i < 2; ++i) right[i] = b[2 * lane + i];
  if (kind == kFloat16) mma_m16n8k16_f16(sums, left, right);
  if (kind == kBfloat16) mma_m16n8k16_bf16(sums, left, right);
  if (kind == kTf32) mma_m16n8k8_tf32(sums, left, right);
  for (int i = 0; i < 4; ++i) c[4 * lane + i] = sums[i];
}

__global__ void load_matrices(bool transpose, const uint16_t* values, uint32_t* registers) {
  __shared__ __align__(16) uint16_t tile[32][8];
  const int lane = threadIdx.x;
  cp_async_16(tile[lane], values + 8 * lane, true);
  cp_async_commit();
  cp_async_wait<0>();
  __syncwarp();
  uint32_t r[4];
  if (transpose) {
    ldmatrix_x4_trans(r, tile[lane]);
  } else {
    ldmatrix_x4(r, tile[lane]);
  }
  for (int i = 0; i < 4; ++i) registers[4 * lane + i] = r[i];
}

__global__ void round_numbers(const float* x, uint32_t* bits, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) bits[i] = round_to_tf32(x[i]);
}

}  // namespace

ACTION_EXPORT int check_multiply(int kind, const uint32_t* a, const uint32_t* b, float* c) {
  return launch(multiply, 1, 32, 0, nullptr, kind, a, b, c);
}
ACTION_EXPORT int check_load_matrices(int transpose, const uint16_t* values, uint32_t* registers) {
  return launch(load_matrices, 1, 32, 0, nullptr, transpose != 0, values, registers);
}
ACTION_EXPORT int check_round(const float* x, uint32_t* bits, int n) {
  return launch(round_numbers, (n + 63) / 64, 64, 0, nullptr, x, bits, n);
}
