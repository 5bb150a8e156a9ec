// 16-bit floating types: float32 with fewer bits, rounded to nearest, ties to even.
#pragma once

#include <bit>
#include <cstdint>

namespace cuda_host {

inline uint16_t to_bfloat16(float x) {
  uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;  // CUDA's NaN
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float from_bfloat16(uint16_t x) { return std::bit_cast<float>(static_cast<uint32_t>(x) << 16); }

inline uint16_t to_float16(float x) {
  uint32_t bits = std::bit_cast<uint32_t>(x), magnitude = bits & 0x7fffffff;
  auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  if (magnitude > 0x7f800000) return 0x7fff;          // CUDA's NaN
  if (magnitude >= 0x477ff000) return sign | 0x7c00;  // 65520 and above round to infinity
  if (magnitude < 0x38800000) {  // subnormal: adding 0.5 leaves the result in the lowest bits, rounded by the addition
    float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return sign | static_cast<uint16_t>(std::bit_cast<uint32_t>(shifted) - 0x3f000000);
  }
  magnitude += 0xfff + (magnitude >> 13 & 1);
  return sign | static_cast<uint16_t>((magnitude - 0x38000000) >> 13);
}

inline float from_float16(uint16_t x) {
  uint32_t sign = static_cast<uint32_t>(x & 0x8000) << 16, magnitude = x & 0x7fff;
  if (magnitude >= 0x7c00) return std::bit_cast<float>(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  if (magnitude < 0x400) {
    float value = static_cast<float>(magnitude) * 0x1p-24f;
    return sign ? -value : value;
  }
  return std::bit_cast<float>(sign | ((magnitude << 13) + 0x38000000));
}

}  // namespace cuda_host

// Defines a type, its pair and their operators. float32 has more than twice the bits, so that a sum, product or
// quotient taken there and rounded again is the correctly rounded one.
#define CUDA_HOST_NARROW(type, pair, encode, decode)                                                 \
  struct type {                                                                                      \
    uint16_t bits;                                                                                   \
    type() = default;                                                                                \
    type(float x) : bits(encode(x)) {}                                                               \
    explicit type(double x) : bits(encode(static_cast<float>(x))) {}                                 \
    explicit type(int x) : bits(encode(static_cast<float>(x))) {}                                    \
    operator float() const { return decode(bits); }                                                  \
  };                                                                                                 \
  struct alignas(4) pair {                                                                           \
    type x, y;                                                                                       \
    pair() = default;                                                                                \
    pair(type x, type y) : x(x), y(y) {}                                                             \
  };                                                                                                 \
  inline type __hadd(type a, type b) { return type(float(a) + float(b)); }                           \
  inline type __hsub(type a, type b) { return type(float(a) - float(b)); }                           \
  inline type __hmul(type a, type b) { return type(float(a) * float(b)); }                           \
  inline type __hdiv(type a, type b) { return type(float(a) / float(b)); }                           \
  inline type __hneg(type a) { return type(-float(a)); }                                             \
  inline type __hmax(type a, type b) { return float(a) != float(a) || float(a) < float(b) ? b : a; } \
  inline type __hmin(type a, type b) { return float(a) != float(a) || float(b) < float(a) ? b : a; } \
  inline bool __hisnan(type a) { return float(a) != float(a); }                                      \
  inline bool __hlt(type a, type b) { return float(a) < float(b); }                                  \
  inline bool __hgt(type a, type b) { return float(a) > float(b); }                                  \
  inline type operator+(type a, type b) { return __hadd(a, b); }                                     \
  inline type operator-(type a, type b) { return __hsub(a, b); }                                     \
  inline type operator*(type a, type b) { return __hmul(a, b); }                                     \
  inline type operator/(type a, type b) { return __hdiv(a, b); }                                     \
  inline pair __hadd2(pair a, pair b) { return {__hadd(a.x, b.x), __hadd(a.y, b.y)}; }               \
  inline pair __hmul2(pair a, pair b) { return {__hmul(a.x, b.x), __hmul(a.y, b.y)}; }               \
  inline float __low2float(pair a) { return a.x; }                                                   \
  inline float __high2float(pair a) { return a.y; }
