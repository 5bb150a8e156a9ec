// Products of tiles. Four warps hold a block of 64 x 64 similarities, 16 rows each; operands are in shared memory.
//
// A tile is 64 rows of 128 bytes; the 16-byte parts of row r are permuted by r, so that neither loads of fragments
// nor loads of single rows have bank conflicts. In bytes, the fragments of m16n8k16 with 16-bit numbers and of m16n8k8
// with tf32 are the same, and so is all of the loading.
#pragma once

#include "async_copy.cuh"
#include "mma.cuh"
#include "placement.cuh"
#include "rows.cuh"

namespace action {

constexpr int kThreads = 128;
constexpr int kBlock = 64;                // rows of a tile
constexpr int kWarpRows = 16;             // of the left tile, for each of the four warps
constexpr int kChunk = 128;               // bytes of a row in a tile
constexpr int kTile = kBlock * kChunk;    // bytes
constexpr int kWeightPitch = kBlock + 8;  // floats: rows of weights that threads exchange start in other banks
constexpr int kWeights = kWarpRows * kWeightPitch * 4;  // bytes for a warp

// How products are computed, and of what.
struct Exact {  // float32 without tensor cores
  using Element = float;
};
struct Tf32 {  // float32 rows that have been rounded to tf32
  using Element = float;
};
struct Half {
  using Element = __half;
};
struct Bfloat {
  using Element = __nv_bfloat16;
};

/// use(math) with the way in which products of rows of this dtype are taken.
template <class Use>
auto with_math(Dtype dtype, bool tf32, Use use) {
  if (dtype == Dtype::float16) return use(Half{});
  if (dtype == Dtype::bfloat16) return use(Bfloat{});
  return tf32 ? use(Tf32{}) : use(Exact{});
}

__device__ inline int lane_id() { return threadIdx.x & 31; }
__device__ inline int warp_id() { return threadIdx.x >> 5; }

__device__ inline char* part_of(char* tile, int row, int part) {
  return tile + row * kChunk + ((part ^ (row & 7)) << 4);
}
__device__ inline const char* part_of(const char* tile, int row, int part) {
  return tile + row * kChunk + ((part ^ (row & 7)) << 4);
}

/// How many of the rows from `first` to before `end` are in the first tile.
__device__ inline int rows_of_tile(int64_t first, int64_t end) {
  return end - first < kBlock ? static_cast<int>(end - first) : kBlock;
}

/// How many of a warp's rows exist, where its first is `first`.
__device__ inline int rows_of_warp(int64_t first, int64_t end) {
  const int64_t rows = end - first;
  return static_cast<int>(rows < 0 ? 0 : rows < kWarpRows ? rows : kWarpRows);
}

/// Rows first... of [end, pitch bytes] into a tile, bytes from...; zeros from row `end` on. Asynchronous.
template <bool PLACED = false>
__device__ inline void load_tile(char* tile, const char* data, int64_t first, int64_t end, int64_t pitch, int64_t from,
                                 Placement placement = {}) {
  constexpr int kApart = kThreads / 8;  // rows between a thread's pieces, a multiple of 8: all are permuted alike
  const int row = threadIdx.x / 8, part = threadIdx.x % 8;
  if (part * 16 >= pitch - from) return;
  const int rows = rows_of_tile(first, end);
  // Where a tile begins is known to a whole warp, and from there on 32 bits are enough.
  const char* begin = data + first * pitch + from;
  const auto step = static_cast<uint32_t>(pitch), place = row * step + part * 16;
  char* target = part_of(tile, row, part);
  if (!PLACED && rows == kBlock) {
#pragma unroll
    for (int i = 0; i < kBlock / kApart; ++i) {
      cp_async_16(target + i * kApart * kChunk, begin + (place + i * kApart * step), true);
    }
    return;
  }
#pragma unroll
  for (int i = 0; i < kBlock / kApart; ++i) {
    const bool present = row + i * kApart < rows;
    const char* piece = begin + (place + i * kApart * step);
    if constexpr (PLACED) piece = data + placement.place_of(first + row + i * kApart) * pitch + from + part * 16;
    cp_async_16(target + i * kApart * kChunk, present ? piece : data, present);
  }
}

/// A thread's part of its warp's 16 x 64 similarities, and which they are.
template <class Math>
struct Scores {
  static constexpr int kRows = 2, kColumns = 16, kSharers = 4;  // kSharers neighbouring lanes share a row
  float v[kRows * kColumns];

  __device__ float& at(int r, int c) { return v[(c / 2) * 4 + 2 * r + c % 2]; }
  __device__ static constexpr int r_of(int i) { return i >> 1 & 1; }  // v[i] is at(r_of(i), c_of(i))
  __device__ static constexpr int c_of(int i) { return (i >> 2) * 2 + (i & 1); }
  __device__ static int row(int r) { return (lane_id() >> 2) + 8 * r; }
  __device__ static int column(int c, int lane = lane_id()) { return 8 * (c / 2) + 2 * (lane & 3) + c % 2; }
  __device__ void clear() {
#pragma unroll
    for (float& x : v) x = 0.0f;
  }
};

template <>
struct Scores<Exact> {
  static constexpr int kRows = 4, kColumns = 8, kSharers = 8;
  float v[kRows * kColumns];

  __device__ float& at(int r, int c) { return v[r * kColumns + c]; }
  __device__ static constexpr int r_of(int i) { return i / kColumns; }
  __device__ static constexpr int c_of(int i) { return i % kColumns; }
  __device__ static int row(int r) { return (lane_id() >> 3) + 4 * r; }
  __device__ static int column(int c, int lane = lane_id()) { return (lane & 7) + 8 * c; }
  __device__ void clear() {
#pragma unroll
    for (float& x : v) x = 0.0f;
  }
};

__device__ inline void mma(Half, float* c, const uint32_t* a, const uint32_t* b) { mma_m16n8k16_f16(c, a, b); }
__device__ inline void mma(Bfloat, float* c, const uint32_t* a, const uint32_t* b) { mma_m16n8k16_bf16(c, a, b); }
__device__ inline void mma(Tf32, float* c, const uint32_t* a, const uint32_t* b) { mma_m16n8k8_tf32(c, a, b); }

/// a += x0 z0^T and b += x1 z1^T over one chunk, where x1 and z1 are x0 and z0 unless TWO_X and TWO_Z; b only with
/// either.
template <class Math, bool TWO_X, bool TWO_Z>
struct Products {
  __device__ static void add(const char* x0, const char* x1, const char* z0, const char* z1, int width, Scores<Math>& a,
                             Scores<Math>& b) {
    if (width == kChunk) {  // nothing to compare along the way
      steps<true>(x0, x1, z0, z1, width, a, b);
    } else {
      steps<false>(x0, x1, z0, z1, width, a, b);
    }
  }

 private:
  template <bool WHOLE>
  __device__ static void steps(const char* x0, const char* x1, const char* z0, const char* z1, int width,
                               Scores<Math>& a, Scores<Math>& b) {
    const int lane = lane_id(), matrix = lane >> 3, row = lane & 7;
    const int x_row = warp_id() * kWarpRows + (matrix & 1) * 8 + row, z_row = (matrix >> 1) * 8 + row;
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      if (!WHOLE && step * 32 >= width) break;
      uint32_t x[4], y[4];
      ldmatrix_x4(x, part_of(x0, x_row, 2 * step + (matrix >> 1)));
      if constexpr (TWO_X) ldmatrix_x4(y, part_of(x1, x_row, 2 * step + (matrix >> 1)));
#pragma unroll
      for (int pair = 0; pair < kBlock / 16; ++pair) {
        uint32_t z[4];
        ldmatrix_x4(z, part_of(z0, 16 * pair + z_row, 2 * step + (matrix & 1)));
        mma(Math{}, a.v + 8 * pair, x, z);
        mma(Math{}, a.v + 8 * pair + 4, x, z + 2);
        if constexpr (TWO_Z) ldmatrix_x4(z, part_of(z1, 16 * pair + z_row, 2 * step + (matrix & 1)));
        if constexpr (TWO_X || TWO_Z) {
          mma(Math{}, b.v + 8 * pair, TWO_X ? y : x, z);
          mma(Math{}, b.v + 8 * pair + 4, TWO_X ? y : x, z + 2);
        }
      }
    }
  }
};

__device__ inline void multiply_add(float& sum, float4 a, float4 b) {
  sum = fmaf(a.x, b.x, sum);
  sum = fmaf(a.y, b.y, sum);
  sum = fmaf(a.z, b.z, sum);
  sum = fmaf(a.w, b.w, sum);
}

template <bool TWO_X, bool TWO_Z>
struct Products<Exact, TWO_X, TWO_Z> {
  using Block = Scores<Exact>;

  __device__ static float4 load(const char* tile, int row, int part) {
    return *reinterpret_cast<const float4*>(part_of(tile, row, part));
  }

  __device__ static void add(const char* x0, const char* x1, const char* z0, const char* z1, int width, Block& a,
                             Block& b) {
    const int first = warp_id() * kWarpRows;
#pragma unroll 1
    for (int part = 0; part * 16 < width; ++part) {
      float4 x[Block::kRows], y[Block::kRows];
#pragma unroll
      for (int r = 0; r < Block::kRows; ++r) {
        x[r] = load(x0, first + Block::row(r), part);
        if constexpr (TWO_X) y[r] = load(x1, first + Block::row(r), part);
      }
#pragma unroll
      for (int c = 0; c < Block::kColumns; ++c) {
        float4 z = load(z0, Block::column(c), part);
#pragma unroll
        for (int r = 0; r < Block::kRows; ++r) multiply_add(a.at(r, c), x[r], z);
        if constexpr (TWO_Z) z = load(z1, Block::column(c), part);
        if constexpr (TWO_X || TWO_Z) {
#pragma unroll
          for (int r = 0; r < Block::kRows; ++r) multiply_add(b.at(r, c), TWO_X ? y[r] : x[r], z);
        }
      }
    }
  }
};

/// A thread's part of its warp's 16 rows of a weighted sum of rows, two chunks wide. A weight of 16-bit rows is the sum
/// of so many terms.
template <class Math, int TERMS = 2>
struct Sums {
  static constexpr int kFeatures = 2 * kChunk / sizeof(typename Math::Element);
  static constexpr int kTiles = kFeatures / 8;
  float v[kTiles * 4];

  __device__ void clear() {
#pragma unroll
    for (float& x : v) x = 0.0f;
  }

  /// Adds weights @ rows, for rows in two tiles of which `width` bytes count. The last argument: shared memory of the
  /// warp, for exact sums.
  __device__ void add(Scores<Math>& weights, const char* rows, int width, float*) {
    if (width == 2 * kChunk) {
      add_columns<true>(weights, rows, width);
    } else {
      add_columns<false>(weights, rows, width);
    }
  }

  /// f(row of the warp, feature, sum) for every element.
  template <class F>
  __device__ void each(F f) const {
    const int g = lane_id() >> 2, t = lane_id() & 3;
#pragma unroll
    for (int i = 0; i < kTiles * 4; ++i) f(g + i % 4 / 2 * 8, i / 4 * 8 + 2 * t + i % 2, v[i]);
  }

 private:
  template <bool WHOLE>
  __device__ void add_columns(Scores<Math>& weights, const char* rows, int width) {
    const int lane = lane_id(), matrix = lane >> 3;
    if constexpr (sizeof(typename Math::Element) == 2) {
#pragma unroll
      for (int step = 0; step < kBlock / 16; ++step) {
        // Two terms keep 16 or more of a weight's bits. Two tiles of an accumulator are laid out like one left operand.
        uint32_t high[4], low[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const float* w = weights.v + 8 * step + 2 * i;
          split(w[0], w[1], high[i], low[i]);
        }
#pragma unroll
        for (int tile = 0; tile < kTiles; tile += 2) {
          if (!WHOLE && tile * 16 >= width) break;
          uint32_t z[4];
          const char* chunk = rows + tile / 8 * kTile;
          const int row = 16 * step + (matrix & 1) * 8 + (lane & 7);
          ldmatrix_x4_trans(z, part_of(chunk, row, tile % 8 + (matrix >> 1)));
          mma(Math{}, v + 4 * tile, high, z);
          if constexpr (TERMS == 2) mma(Math{}, v + 4 * tile, low, z);
          mma(Math{}, v + 4 * tile + 4, high, z + 2);
          if constexpr (TERMS == 2) mma(Math{}, v + 4 * tile + 4, low, z + 2);
        }
      }
    } else {
      const int g = lane >> 2, t = lane & 3;
#pragma unroll
      for (int step = 0; step < kBlock / 8; ++step) {
        // The sum over rows may be taken in any order: row numbers are permuted to match the accumulator's layout.
        const float* w = weights.v + 4 * step;
        uint32_t x[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) x[i] = round_to_tf32(w[(i & 1) * 2 + i / 2]);
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile) {
          if (!WHOLE && tile * 32 >= width) break;
          uint32_t z[2];
          const char* chunk = rows + tile / 4 * kTile;
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const char* part = part_of(chunk, 8 * step + 2 * t + i, tile % 4 * 2 + g / 4);
            z[i] = reinterpret_cast<const uint32_t*>(part)[g & 3];
          }
          mma(Math{}, v + 4 * tile, x, z);
        }
      }
    }
  }

  __device__ static void split(float first, float second, uint32_t& high, uint32_t& low) {
    using T = typename Math::Element;
    const T a = from_float<T>(first), b = from_float<T>(second);
    high = pack(a, b);
    if constexpr (TERMS == 2) low = pack(from_float<T>(first - as_float(a)), from_float<T>(second - as_float(b)));
  }
  __device__ static uint32_t pack(__half a, __half b) {
    return __half_as_ushort(a) | static_cast<uint32_t>(__half_as_ushort(b)) << 16;
  }
  __device__ static uint32_t pack(__nv_bfloat16 a, __nv_bfloat16 b) {
    return __bfloat16_as_ushort(a) | static_cast<uint32_t>(__bfloat16_as_ushort(b)) << 16;
  }
};

template <>
struct Sums<Exact> {
  using Block = Scores<Exact>;
  static constexpr int kFeatures = 2 * kChunk / sizeof(float);
  float v[Block::kRows * 8];

  __device__ void clear() {
#pragma unroll
    for (float& x : v) x = 0.0f;
  }

  __device__ void add(Block& weights, const char* rows, int width, float* exchange) {
#pragma unroll
    for (int r = 0; r < Block::kRows; ++r) {
#pragma unroll
      for (int c = 0; c < Block::kColumns; ++c) {
        exchange[Block::row(r) * kWeightPitch + Block::column(c)] = weights.at(r, c);
      }
    }
    __syncwarp();
#pragma unroll 1
    for (int k = 0; k < kBlock; k += 4) {
      float4 w[Block::kRows];
#pragma unroll
      for (int r = 0; r < Block::kRows; ++r) {
        w[r] = *reinterpret_cast<const float4*>(exchange + Block::row(r) * kWeightPitch + k);
      }
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        if (j * kChunk + (lane_id() & 7) * 16 >= width) break;
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float4 z = *reinterpret_cast<const float4*>(part_of(rows + j * kTile, k + e, lane_id() & 7));
#pragma unroll
          for (int r = 0; r < Block::kRows; ++r) {
            const float weight = e == 0 ? w[r].x : e == 1 ? w[r].y : e == 2 ? w[r].z : w[r].w;
            float* sum = v + r * 8 + j * 4;
            sum[0] = fmaf(weight, z.x, sum[0]);
            sum[1] = fmaf(weight, z.y, sum[1]);
            sum[2] = fmaf(weight, z.z, sum[2]);
            sum[3] = fmaf(weight, z.w, sum[3]);
          }
        }
      }
    }
    __syncwarp();
  }

  template <class F>
  __device__ void each(F f) const {
#pragma unroll
    for (int i = 0; i < Block::kRows * 8; ++i) {
      f(Block::row(i / 8), i % 8 / 4 * 32 + (lane_id() & 7) * 4 + i % 4, v[i]);
    }
  }
};

}  // namespace action
