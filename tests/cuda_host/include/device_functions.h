// What kernels can call: indices, barriers, warp operations, atomics, bits, arithmetic.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "../runtime/runtime.h"
#include "vector_types.h"

// Constant for any one thread, which is all that a kernel sees.
extern "C" {
extern const uint3 threadIdx, blockIdx;
extern const dim3 blockDim, gridDim;
}
constexpr int warpSize = cuda_host::kWarpSize;

// ---- barriers

inline void __syncthreads(CUDA_HOST_SITE) { cuda_host::meet_block("__syncthreads", false, site); }
inline int __syncthreads_count(int predicate, CUDA_HOST_SITE) {
  return cuda_host::meet_block("__syncthreads_count", predicate != 0, site);
}
inline int __syncthreads_or(int predicate, CUDA_HOST_SITE) {
  return cuda_host::meet_block("__syncthreads_or", predicate != 0, site) != 0;
}
inline int __syncthreads_and(int predicate, CUDA_HOST_SITE) {
  return cuda_host::meet_block("__syncthreads_and", predicate == 0, site) == 0;
}
inline void __syncwarp(unsigned mask = 0xffffffffu, CUDA_HOST_SITE) {
  cuda_host::meet_warp("__syncwarp", mask, nullptr, nullptr, nullptr, true, site);
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
inline void __nanosleep(unsigned) {}

// ---- operations of a warp

namespace cuda_host {

// Every lane gives one value and gets one that function(mask, values of all lanes, own lane) makes of all.
template <auto function, typename Value>
auto exchange(const char* operation, unsigned mask, const Value& value, Site site) {
  using Result = decltype(function(mask, static_cast<const Value* const*>(nullptr), 0));
  Result result{};
  meet_warp(
      operation, mask, &value, &result,
      [](unsigned mask, const void* const* in, void* const* out) {
        auto values = reinterpret_cast<const Value* const*>(in);
        for (int lane = 0; lane < kWarpSize; ++lane) {
          if (mask >> lane & 1) *static_cast<Result*>(out[lane]) = function(mask, values, lane);
        }
      },
      false, site);
  return result;
}

template <typename T>
struct Shuffle {
  T value;
  int source;  // a lane; the own one where the operation names none
};

template <typename T>
T shuffle(const char* operation, unsigned mask, T value, int source, Site site) {
  // A lane outside the mask has no value to give: CUDA leaves the result undefined, here it is a report.
  auto pick = [](unsigned mask, const Shuffle<T>* const* in, int lane) {
    int source = in[lane]->source;
    return in[source] ? in[source]->value : (absent_source(mask, lane, source), in[lane]->value);
  };
  return exchange<pick>(operation, mask, Shuffle<T>{value, source}, site);
}

inline int segment(int width) { return static_cast<int>(lane()) & ~(width - 1); }

inline unsigned ballot(unsigned, const bool* const* in, int) {
  unsigned votes = 0;
  for (int i = 0; i < kWarpSize; ++i) votes |= in[i] && *in[i] ? 1u << i : 0;
  return votes;
}

template <typename T, typename Combine>
T reduce(const char* operation, unsigned mask, T value, Combine, Site site) {
  auto all = [](unsigned, const T* const* in, int lane) {
    T result = *in[lane];
    for (int i = 0; i < kWarpSize; ++i) {
      if (in[i] && i != lane) result = Combine{}(result, *in[i]);
    }
    return result;
  };
  return exchange<all>(operation, mask, value, site);
}

}  // namespace cuda_host

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize, CUDA_HOST_SITE) {
  return cuda_host::shuffle("__shfl_sync", mask, value, cuda_host::segment(width) + (source & (width - 1)), site);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize, CUDA_HOST_SITE) {
  int self = static_cast<int>(cuda_host::lane()), source = self - static_cast<int>(delta);
  return cuda_host::shuffle("__shfl_up_sync", mask, value, source < cuda_host::segment(width) ? self : source, site);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize, CUDA_HOST_SITE) {
  int self = static_cast<int>(cuda_host::lane()), source = self + static_cast<int>(delta);
  bool inside = source < cuda_host::segment(width) + width;
  return cuda_host::shuffle("__shfl_down_sync", mask, value, inside ? source : self, site);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = warpSize, CUDA_HOST_SITE) {
  int self = static_cast<int>(cuda_host::lane()), source = self ^ bits;
  bool inside = source < cuda_host::segment(width) + width;  // an earlier segment may be read, a later one not
  return cuda_host::shuffle("__shfl_xor_sync", mask, value, inside ? source : self, site);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, CUDA_HOST_SITE) {
  return cuda_host::exchange<cuda_host::ballot>("__ballot_sync", mask, predicate != 0, site);
}
inline int __any_sync(unsigned mask, int predicate, CUDA_HOST_SITE) {
  return cuda_host::exchange<cuda_host::ballot>("__any_sync", mask, predicate != 0, site) != 0;
}
inline int __all_sync(unsigned mask, int predicate, CUDA_HOST_SITE) {
  return cuda_host::exchange<cuda_host::ballot>("__all_sync", mask, predicate == 0, site) == 0;
}
template <typename T>
unsigned __match_any_sync(unsigned mask, T value, CUDA_HOST_SITE) {
  auto equal = [](unsigned, const T* const* in, int lane) {
    unsigned lanes = 0;
    for (int i = 0; i < warpSize; ++i) lanes |= in[i] && *in[i] == *in[lane] ? 1u << i : 0;
    return lanes;
  };
  return cuda_host::exchange<equal>("__match_any_sync", mask, value, site);
}
// The caller alone: all that CUDA promises.
inline unsigned __activemask() { return 1u << cuda_host::lane(); }

#define CUDA_HOST_REDUCE(name, type, expression)                                                   \
  inline type name(unsigned mask, type value, CUDA_HOST_SITE) {                                    \
    return cuda_host::reduce(#name, mask, value, [](type a, type b) { return expression; }, site); \
  }
CUDA_HOST_REDUCE(__reduce_add_sync, unsigned, a + b)
CUDA_HOST_REDUCE(__reduce_add_sync, int, static_cast<int>(static_cast<unsigned>(a) + static_cast<unsigned>(b)))
CUDA_HOST_REDUCE(__reduce_min_sync, unsigned, a < b ? a : b)
CUDA_HOST_REDUCE(__reduce_min_sync, int, a < b ? a : b)
CUDA_HOST_REDUCE(__reduce_max_sync, unsigned, a > b ? a : b)
CUDA_HOST_REDUCE(__reduce_max_sync, int, a > b ? a : b)
CUDA_HOST_REDUCE(__reduce_and_sync, unsigned, (a & b))
CUDA_HOST_REDUCE(__reduce_or_sync, unsigned, a | b)
CUDA_HOST_REDUCE(__reduce_xor_sync, unsigned, a ^ b)
#undef CUDA_HOST_REDUCE

// ---- atomics

namespace cuda_host {

// No other thread runs in between. Not instrumented: its load and store are not two accesses.
template <typename T, typename Change>
__attribute__((no_sanitize("thread"), noinline)) T atomic(T* address, Change change) {
  check_alignment("an atomic operation", address, sizeof(T), __builtin_return_address(0));
  check_access(address, sizeof(T), Access::kAtomic, __builtin_return_address(0));
  T old = *address;
  *address = change(old);
  return old;
}

template <typename T>
using Same = std::type_identity_t<T>;  // the address decides the type

}  // namespace cuda_host

template <typename T>
T atomicAdd(T* address, cuda_host::Same<T> value) {
  if constexpr (std::is_integral_v<T>) {
    using Unsigned = std::make_unsigned_t<T>;  // wraps
    return cuda_host::atomic(
        address, [=](T old) { return static_cast<T>(static_cast<Unsigned>(old) + static_cast<Unsigned>(value)); });
  } else {
    return cuda_host::atomic(address, [=](T old) { return static_cast<T>(old + value); });
  }
}
template <typename T>
T atomicSub(T* address, cuda_host::Same<T> value) {
  return atomicAdd(address, static_cast<T>(T{0} - value));
}
template <typename T>
T atomicMax(T* address, cuda_host::Same<T> value) {
  return cuda_host::atomic(address, [=](T old) { return old < value ? value : old; });
}
template <typename T>
T atomicMin(T* address, cuda_host::Same<T> value) {
  return cuda_host::atomic(address, [=](T old) { return value < old ? value : old; });
}
template <typename T>
T atomicExch(T* address, cuda_host::Same<T> value) {
  return cuda_host::atomic(address, [=](T) { return value; });
}
template <typename T>
T atomicCAS(T* address, cuda_host::Same<T> expected, cuda_host::Same<T> value) {
  return cuda_host::atomic(address, [=](T old) { return old == expected ? value : old; });
}
template <typename T>
T atomicOr(T* address, cuda_host::Same<T> value) {
  return cuda_host::atomic(address, [=](T old) { return old | value; });
}
template <typename T>
T atomicAnd(T* address, cuda_host::Same<T> value) {
  return cuda_host::atomic(address, [=](T old) { return old & value; });
}

// ---- bits

inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __clzll(long long x) { return std::countl_zero(static_cast<unsigned long long>(x)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
  unsigned y = 0;
  for (int i = 0; i < 32; ++i) y |= (x >> i & 1) << (31 - i);
  return y;
}
inline unsigned long long __brevll(unsigned long long x) {
  return static_cast<unsigned long long>(__brev(static_cast<unsigned>(x))) << 32 |
         __brev(static_cast<unsigned>(x >> 32));
}
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(uint64_t{a} * b >> 32); }
inline int __mulhi(int a, int b) { return static_cast<int>(int64_t{a} * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline long long __double_as_longlong(double x) { return std::bit_cast<long long>(x); }
inline double __longlong_as_double(long long x) { return std::bit_cast<double>(x); }

// ---- arithmetic; the fast versions are exact here

inline float __expf(float x) { return std::exp(x); }
inline float __exp2f(float x) { return std::exp2(x); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __frsqrt_rn(float x) { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(x))); }
inline float rsqrtf(float x) { return __frsqrt_rn(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
// Never fused into a multiply-add, unlike the operators: the compiler does not see through the empty statement.
inline float __rounded(float x) {
  asm("" : "+m"(x));
  return x;
}
inline float __fadd_rn(float a, float b) { return __rounded(__rounded(a) + __rounded(b)); }
inline float __fsub_rn(float a, float b) { return __rounded(__rounded(a) - __rounded(b)); }
inline float __fmul_rn(float a, float b) { return __rounded(a * b); }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline int __float2int_rn(float x) { return static_cast<int>(std::nearbyint(x)); }
inline int __float2int_rd(float x) { return static_cast<int>(std::floor(x)); }
inline int __float2int_rz(float x) { return static_cast<int>(x); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
template <typename A, typename B>
auto max(A a, B b) {
  using T = std::common_type_t<A, B>;
  return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(b) : static_cast<T>(a);
}
template <typename A, typename B>
auto min(A a, B b) {
  using T = std::common_type_t<A, B>;
  return static_cast<T>(b) < static_cast<T>(a) ? static_cast<T>(b) : static_cast<T>(a);
}

// ---- memory

template <typename T>
T __ldg(const T* address) {
  return *address;
}
template <typename T>
T __ldcg(const T* address) {
  return *address;
}
template <typename T>
T __ldcs(const T* address) {
  return *address;
}
template <typename T>
void __stcg(T* address, cuda_host::Same<T> value) {
  *address = value;
}
template <typename T>
void __stcs(T* address, cuda_host::Same<T> value) {
  *address = value;
}
inline size_t __cvta_generic_to_shared(const void* address) { return reinterpret_cast<size_t>(address); }
