// The tensor-core wrappers of csrc/cuda/mma.cuh without tensor cores, after the fragment layouts of the PTX manual.
#pragma once

#include <cstring>

#include "narrow.h"

namespace cuda_host {

template <int K>
struct Fragments {
  static constexpr int kValues = K == 16 ? 2 : 1;  // in a register
  uint32_t a[4], b[2];
  float c[4];
};

struct Accumulators {
  float d[4];
};

inline double tf32(uint32_t bits) { return std::bit_cast<float>(bits & 0xffffe000u); }  // the low bits are not read

// c + a b of m16n8kK, over the whole warp: exact products, their sum rounded once.
template <int K, double (*decode)(uint32_t, int)>
void mma(float* c, const uint32_t* a, const uint32_t* b, const char* operation, Site site) {
  Fragments<K> own;
  std::memcpy(own.a, a, sizeof own.a);
  std::memcpy(own.b, b, sizeof own.b);
  std::memcpy(own.c, c, sizeof own.c);
  Accumulators result;
  meet_warp(
      operation, 0xffffffffu, &own, &result,
      [](unsigned, const void* const* in, void* const* out) {
        auto lanes = reinterpret_cast<const Fragments<K>* const*>(in);
        double a[16][K], b[K][8];
        for (int lane = 0; lane < kWarpSize; ++lane) {
          int g = lane >> 2, t = lane & 3;
          if constexpr (K == 16) {
            for (int i = 0; i < 8; ++i) {
              a[g + 8 * (i >> 1 & 1)][2 * t + (i & 1) + 8 * (i >> 2)] = decode(lanes[lane]->a[i / 2], i & 1);
            }
            for (int i = 0; i < 4; ++i) b[2 * t + (i & 1) + 8 * (i >> 1)][g] = decode(lanes[lane]->b[i / 2], i & 1);
          } else {
            for (int i = 0; i < 4; ++i) a[g + 8 * (i & 1)][t + 4 * (i >> 1)] = decode(lanes[lane]->a[i], 0);
            for (int i = 0; i < 2; ++i) b[t + 4 * i][g] = decode(lanes[lane]->b[i], 0);
          }
        }
        for (int lane = 0; lane < kWarpSize; ++lane) {
          int g = lane >> 2, t = lane & 3;
          for (int i = 0; i < 4; ++i) {
            int row = g + 8 * (i >> 1), column = 2 * t + (i & 1);
            double sum = lanes[lane]->c[i];
            for (int k = 0; k < K; ++k) sum += a[row][k] * b[k][column];
            static_cast<Accumulators*>(out[lane])->d[i] = static_cast<float>(sum);
          }
        }
      },
      false, site);
  std::memcpy(c, result.d, sizeof result.d);
}

inline double half_of(uint32_t pair, int i) { return from_float16(static_cast<uint16_t>(pair >> 16 * i)); }
inline double bfloat_of(uint32_t pair, int i) { return from_bfloat16(static_cast<uint16_t>(pair >> 16 * i)); }
inline double tf32_of(uint32_t bits, int) { return tf32(bits); }

struct MatrixRow {
  uint16_t values[8];
};

// Lane l gives row l & 7 of matrix l >> 3 and gets two neighbours of each matrix: of row l >> 2, or with TRANSPOSE of
// column l >> 2.
template <bool TRANSPOSE>
void load_matrices(uint32_t* registers, const void* row, const char* operation, Site site) {
  check_alignment(operation, row, 16, __builtin_return_address(0));
  MatrixRow own = *static_cast<const MatrixRow*>(row);
  struct Result {
    uint32_t registers[4];
  } result;
  meet_warp(
      operation, 0xffffffffu, &own, &result,
      [](unsigned, const void* const* in, void* const* out) {
        auto rows = reinterpret_cast<const MatrixRow* const*>(in);
        for (int lane = 0; lane < kWarpSize; ++lane) {
          int major = lane >> 2, minor = 2 * (lane & 3);
          for (int m = 0; m < 4; ++m) {
            uint16_t low = TRANSPOSE ? rows[8 * m + minor]->values[major] : rows[8 * m + major]->values[minor];
            uint16_t high = TRANSPOSE ? rows[8 * m + minor + 1]->values[major] : rows[8 * m + major]->values[minor + 1];
            static_cast<Result*>(out[lane])->registers[m] = low | static_cast<uint32_t>(high) << 16;
          }
        }
      },
      false, site);
  std::memcpy(registers, result.registers, sizeof result.registers);
}

}  // namespace cuda_host

namespace action {

inline void mma_m16n8k16_f16(float* c, const uint32_t* a, const uint32_t* b, CUDA_HOST_SITE) {
  cuda_host::mma<16, cuda_host::half_of>(c, a, b, "mma_m16n8k16_f16", site);
}
inline void mma_m16n8k16_bf16(float* c, const uint32_t* a, const uint32_t* b, CUDA_HOST_SITE) {
  cuda_host::mma<16, cuda_host::bfloat_of>(c, a, b, "mma_m16n8k16_bf16", site);
}
inline void mma_m16n8k8_tf32(float* c, const uint32_t* a, const uint32_t* b, CUDA_HOST_SITE) {
  cuda_host::mma<8, cuda_host::tf32_of>(c, a, b, "mma_m16n8k8_tf32", site);
}
inline void ldmatrix_x4(uint32_t* registers, const void* row, CUDA_HOST_SITE) {
  cuda_host::load_matrices<false>(registers, row, "ldmatrix_x4", site);
}
inline void ldmatrix_x4_trans(uint32_t* registers, const void* row, CUDA_HOST_SITE) {
  cuda_host::load_matrices<true>(registers, row, "ldmatrix_x4_trans", site);
}
// Nearest, ties away from zero; infinities and NaN stay what they are.
inline uint32_t round_to_tf32(float x) {
  uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7f800000) == 0x7f800000) return (bits & 0x7fffff) ? 0x7fffffff : bits;
  return (bits + 0x1000) & 0xffffe000u;
}

}  // namespace action
