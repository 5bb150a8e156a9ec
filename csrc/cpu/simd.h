// One vector of float32 in the instruction set that this translation unit is compiled for.
//
// Arithmetic uses the compilers' vector extensions (GCC, Clang), so that the same source serves every instruction set;
// intrinsics appear only where the extensions have no equivalent. ACTION_ISA names the namespace, so that no inline
// function of one instruction set can be linked into another.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "../params/inline.h"

#ifndef ACTION_ISA
#error "compile with -DACTION_ISA=<name>"
#endif

namespace action::ACTION_ISA {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
// Rows of a register block: kBlock x 2 accumulators, 2 operands and a broadcast fit the registers.
constexpr int kBlock = 12;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
constexpr int kBlock = 6;
#else
constexpr int kWidth = 4;
constexpr int kBlock = 6;
#endif

using vf = float __attribute__((vector_size(4 * kWidth)));
using vi = int32_t __attribute__((vector_size(4 * kWidth)));
// In an alias declaration Clang ignores the alignment.
typedef float vf_unaligned __attribute__((vector_size(4 * kWidth), aligned(4), may_alias));
typedef int32_t vi_unaligned __attribute__((vector_size(4 * kWidth), aligned(4), may_alias));
static_assert(alignof(vf_unaligned) == 4 && alignof(vi_unaligned) == 4);

// All that takes or gives a vector is inlined: called from a loop it costs more than its own work, and in a large
// translation unit the compiler leaves even small functions out of line.
ACTION_INLINE vf load(const float* p) { return *reinterpret_cast<const vf_unaligned*>(p); }
ACTION_INLINE void store(float* p, vf x) { *reinterpret_cast<vf_unaligned*>(p) = x; }
ACTION_INLINE void store(int32_t* p, vi x) { *reinterpret_cast<vi_unaligned*>(p) = x; }
ACTION_INLINE vi load(const int32_t* p) { return *reinterpret_cast<const vi_unaligned*>(p); }

ACTION_INLINE vf set1(float x) {
#if defined(__AVX512F__)
  return (vf)_mm512_set1_ps(x);
#elif defined(__AVX2__)
  return (vf)_mm256_set1_ps(x);
#else
  return vf{x, x, x, x};
#endif
}

ACTION_INLINE vi set1(int32_t x) { return vi{} + x; }

// The lane-wise maximum; NaN in `x` stays NaN, NaN in `floor` gives x.
ACTION_INLINE vf max(vf floor, vf x) {
#if defined(__AVX512F__)
  return (vf)_mm512_max_ps((__m512)floor, (__m512)x);
#elif defined(__AVX2__)
  return (vf)_mm256_max_ps((__m256)floor, (__m256)x);
#else
  return floor > x ? floor : x;
#endif
}

// x itself, but as a value of its own that no compiler may fuse into a multiply-add.
ACTION_INLINE vf rounded(vf x) {
#if defined(__AVX512F__)
  asm("" : "+v"(x));
#elif defined(__x86_64__)
  asm("" : "+x"(x));
#elif defined(__aarch64__)
  asm("" : "+w"(x));
#endif
  return x;
}

ACTION_INLINE float sum(vf x) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps((__m512)x);
#else
  float total = 0;
  for (int i = 0; i < kWidth; ++i) total += x[i];
  return total;
#endif
}

// Bit i is set where lane i of a comparison holds.
ACTION_INLINE uint32_t lanes_above(vf x, vf bound) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)x, (__m512)bound, _CMP_GT_OQ);
#elif defined(__AVX2__)
  return (uint32_t)_mm256_movemask_ps(_mm256_cmp_ps((__m256)x, (__m256)bound, _CMP_GT_OQ));
#else
  vi hit = x > bound;
  uint32_t bits = 0;
  for (int i = 0; i < kWidth; ++i) bits |= (hit[i] & 1u) << i;
  return bits;
#endif
}

// Adds one in the lanes where x exceeds the bound.
ACTION_INLINE vi plus_above(vi count, vf x, vf bound) {
#if defined(__AVX512F__)
  const __mmask16 above = _mm512_cmp_ps_mask((__m512)x, (__m512)bound, _CMP_GT_OQ);
  return (vi)_mm512_mask_sub_epi32((__m512i)count, above, (__m512i)count, _mm512_set1_epi32(-1));
#else
  return count - (x > bound);
#endif
}

#if defined(__AVX2__) && !defined(__AVX512F__)
// Lanes of the set bits of a byte, in order.
struct SetBits {
  uint8_t lane[256][8];
  constexpr SetBits() : lane() {
    for (int byte = 0; byte < 256; ++byte)
      for (int bit = 0, n = 0; bit < 8; ++bit)
        if (byte >> bit & 1) lane[byte][n++] = static_cast<uint8_t>(bit);
  }
};
inline constexpr SetBits kSetBits;
#endif

// Stores the lanes whose bits are set one after another, then arbitrary values up to kWidth; returns their number.
template <class Lane, class Vector>
ACTION_INLINE int store_lanes(Lane* out, Vector x, uint32_t bits) {
#if defined(__AVX512F__)
  _mm512_storeu_si512(out, _mm512_maskz_compress_epi32(static_cast<__mmask16>(bits), (__m512i)x));
#elif defined(__AVX2__)
  const __m128i lanes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kSetBits.lane[bits]));
  const __m256i packed = _mm256_permutevar8x32_epi32((__m256i)x, _mm256_cvtepu8_epi32(lanes));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), packed);
#else
  for (int i = 0, n = 0; i < kWidth; ++i) {
    out[n] = x[i];
    n += bits >> i & 1;
  }
#endif
  return __builtin_popcount(bits);
}

// 2**x for x <= 127, relative error below 1.2e-7; 0 from 2**-126.5 down (and at -inf), NaN at NaN.
// 2**x = 2**n * 2**f with n the nearest integer and |f| <= 1/2; the polynomial is 2**f's minimax fit of degree 6.
ACTION_INLINE vf exp2(vf x) {
  x = max(set1(-127.0f), x);
  const vf shift = set1(12582912.0f);  // 1.5 * 2**23: adding it rounds to an integer, kept in the low bits
  vf nearest = x + shift;
  vf f = x - (nearest - shift);
  vi n = (vi)nearest - (vi)shift;
  vf y = set1(1.5353362e-4f);
  y = y * f + set1(1.3398875e-3f);
  y = y * f + set1(9.6184369e-3f);
  y = y * f + set1(5.5503324e-2f);
  y = y * f + set1(2.4022648e-1f);
  y = y * f + set1(6.9314718e-1f);
  y = y * f + set1(1.0f);
  vf scale = (vf)((n + 127) << 23);  // n = -127 gives the bits of 0
  return y * scale;
}

inline float half_to_float(uint16_t h) {
  // Shift exponent and mantissa into place, then scale by 2**112 to move the bias (subnormals come out right as well).
  uint32_t bits = (uint32_t)(h & 0x7fff) << 13;
  float value, factor = 5.192296858534828e+33f;
  std::memcpy(&value, &bits, 4);
  value *= factor;
  uint32_t out;
  std::memcpy(&out, &value, 4);
  if ((h & 0x7c00) == 0x7c00) out = 0x7f800000u | ((uint32_t)(h & 0x3ff) << 13);
  out |= (uint32_t)(h & 0x8000) << 16;
  std::memcpy(&value, &out, 4);
  return value;
}

inline float bfloat_to_float(uint16_t b) {
  uint32_t bits = (uint32_t)b << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

ACTION_INLINE vf load_half(const uint16_t* p) {
#if defined(__AVX512F__)
  return (vf)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
  return (vf)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  return vf{half_to_float(p[0]), half_to_float(p[1]), half_to_float(p[2]), half_to_float(p[3])};
#endif
}

ACTION_INLINE vf load_bfloat(const uint16_t* p) {
#if defined(__AVX512F__)
  return (vf)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16);
#elif defined(__AVX2__)
  return (vf)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16);
#else
  return vf{bfloat_to_float(p[0]), bfloat_to_float(p[1]), bfloat_to_float(p[2]), bfloat_to_float(p[3])};
#endif
}

}  // namespace action::ACTION_ISA
