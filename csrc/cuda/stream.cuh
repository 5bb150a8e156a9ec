// A block's walk: it keeps 64 rows on the left (or two sets of them) and streams rows on the right past them, tile by
// tile, through two stages of shared memory: while one is used, the other is being filled.
//
// With few features a step loads a whole tile. With many it loads one chunk of 128 bytes per row, and the left rows'
// chunk too where those do not stay; a kernel that sums rows then loads its columns of the tile in one more step.
#pragma once

#include "../params/checks.h"
#include "online_softmax.cuh"
#include "products.cuh"
#include "splits.cuh"
#include "workspace.cuh"

namespace action {

constexpr int kSharedGoal = 96 << 10;  // bytes that left rows may take up to, so that two blocks share a processor

struct Plan {
  int64_t pitch;  // bytes of a row, a multiple of 32
  int chunks;     // of 128 bytes, the last one may be shorter
  bool whole;     // a step is a tile
  bool resident;  // left rows stay
  int left_tiles, stage_tiles;
};

inline Plan make_plan(int64_t pitch, int lefts, int rights, bool sums) {
  Plan p{pitch, static_cast<int>((pitch + kChunk - 1) / kChunk), false, false, 0, 0};
  p.whole = p.chunks <= 2;
  const int step = rights * (p.whole ? p.chunks : sums ? 2 : 1);
  p.resident = p.whole || (lefts * p.chunks + 2 * step) * kTile <= kSharedGoal;
  p.left_tiles = p.resident ? lefts * p.chunks : 0;
  p.stage_tiles = p.resident || rights + lefts <= step ? step : rights + lefts;
  return p;
}

/// How prepared rows are multiplied, and how they lie in memory.
struct Format {
  static constexpr int64_t kPart = 32;  // bytes to which rows are padded

  Dtype dtype;
  bool tf32;
  int64_t width;  // elements of a row

  int64_t size() const { return dtype == Dtype::float32 ? 4 : 2; }
  int64_t pitch() const { return width * size(); }
};

/// Of rows of `features` elements, multiplied as they are if their dtypes agree; if not, as float32. bfloat16 rows that
/// come to a length in (128, 256] become float16, in which a gradient's weight needs one term instead of two. They fit
/// it exactly but for elements below 2^-21 of the length: those are rounded by at most 2^-32 of it, less than float32
/// products are.
inline Format format_of(std::initializer_list<const Tensor*> rows, int64_t features, bool normalize, bool tf32) {
  Dtype dtype = (*rows.begin())->dtype;
  for (const Tensor* x : rows) {
    if (x->given() && x->dtype != dtype) dtype = Dtype::float32;
  }
  if (normalize && dtype == Dtype::bfloat16) dtype = Dtype::float16;
  Format format{dtype, dtype == Dtype::float32 && tf32, 0};
  const int64_t step = Format::kPart / format.size();
  format.width = ceil_div(features, step) * step;
  return format;
}

/// Prepared rows of all groups, and their scales.
struct Side {
  char* data;    // [G, rows, pitch bytes]
  float* scale;  // [G, rows padded to whole tiles]
  int64_t rows, padded;
};

/// Memory for them.
inline Side take_side(Workspace& memory, const Format& format, int64_t groups, int64_t rows) {
  const int64_t padded = ceil_div(rows, kBlock) * kBlock;
  char* data = memory.take<char>(groups * rows * format.pitch());
  return {data, memory.take<float>(groups * padded), rows, padded};
}

/// Shared memory of a block: tiles, two sets of terms for each row, and what the kernel needs besides.
inline int shared_bytes(const Plan& p, int terms, int besides) {
  return (p.left_tiles + 2 * p.stage_tiles) * kTile + 2 * kBlock * terms * 4 + besides;
}

/// Products become similarities: `left` are the scales of a lane's rows, `right` those of the tile's columns.
template <class Math>
__device__ void scale_products(Scores<Math>& s, const float (&left)[Scores<Math>::kRows], const float* right) {
#pragma unroll
  for (int c = 0; c < Scores<Math>::kColumns; ++c) {
    const float scale = right[Scores<Math>::column(c)];
#pragma unroll
    for (int r = 0; r < Scores<Math>::kRows; ++r) s.at(r, c) = similarity(s.at(r, c), left[r], scale);
  }
}

/// Gives columns that do not exist, from `columns` on, in the last tile, a similarity or a weight that does not count.
template <class Math>
__device__ void leave_out(Scores<Math>& s, int columns, float nothing = kLowest) {
#pragma unroll
  for (int c = 0; c < Scores<Math>::kColumns; ++c) {
    if (Scores<Math>::column(c) < columns) continue;
#pragma unroll
    for (int r = 0; r < Scores<Math>::kRows; ++r) s.at(r, c) = nothing;
  }
}

/// TERMS float32 come with every row on the right, from each of ARRAYS. SUMS: a tile's similarities become weights in a
/// sum of its rows. PLACED: rows on the right, and their terms, come in the order that they had before their placement.
template <class Math, int LEFTS, int RIGHTS, int TERMS, bool SUMS, int ARRAYS = 1, bool PLACED = false>
struct Stream {
  static constexpr bool kPair = LEFTS == 2 || RIGHTS == 2;

  Plan plan;
  const char* left[LEFTS];    // rows of this group, of which those from `first` to before `left_end` are ours
  const char* right[RIGHTS];  // rows of this group
  static_assert(ARRAYS <= 2);
  const float* terms[ARRAYS];  // [rows on the right, TERMS], padded to whole tiles; all but the first may be null
  int64_t first, left_end;
  int out;              // first chunk of the columns that are summed up
  Placement placement;  // of the rows on the right

  __device__ char* stage(int i) const { return shared_memory + (plan.left_tiles + i * plan.stage_tiles) * kTile; }
  __device__ float* term_slot(int i) const { return reinterpret_cast<float*>(stage(2)) + i * ARRAYS * kBlock * TERMS; }
  /// The shared memory after the stream's.
  __device__ char* besides() const { return reinterpret_cast<char*>(term_slot(2)); }

  __device__ int width(int chunk) const {
    const int64_t left = plan.pitch - int64_t{chunk} * kChunk;
    return left < kChunk ? static_cast<int>(left) : kChunk;
  }

  /// Streams rows begin... to before end. For every tile use(start, a, b, terms) turns similarities into weights in
  /// place, then sum(a, b, rows0, rows1) adds up rows (with SUMS), which lie in two tiles each.
  template <class Use, class Sum>
  __device__ void run(int64_t begin, int64_t end, Use use, Sum sum) const {
    if (plan.whole) {
      walk<true>(begin, end, use, sum);
    } else {
      walk<false>(begin, end, use, sum);
    }
  }

  /// Bytes of a row that are summed up.
  __device__ int out_width() const {
    const int64_t left = plan.pitch - int64_t{out} * kChunk;
    return left < 2 * kChunk ? static_cast<int>(left) : 2 * kChunk;
  }

 private:
  template <bool WHOLE, class Use, class Sum>
  __device__ void walk(int64_t begin, int64_t end, Use use, Sum sum) const {
    const int per_tile = WHOLE ? 1 : plan.chunks;
    const int phases = per_tile + (SUMS && !WHOLE ? 1 : 0);
    const bool resident = WHOLE || plan.resident;
    Scores<Math> a, b;
    int64_t start = begin, next_start = begin;
    int phase = 0, next_phase = 0, parity = 0, tile = 0;
    __syncthreads();  // an earlier walk has ended
    if (resident) {
#pragma unroll
      for (int l = 0; l < LEFTS; ++l) {
#pragma unroll 1
        for (int chunk = 0; chunk < plan.chunks; ++chunk) {
          load_tile(shared_memory + (l * plan.chunks + chunk) * kTile, left[l], first, left_end, plan.pitch,
                    int64_t{chunk} * kChunk);
        }
      }
    }
    load<WHOLE>(begin, end, 0, per_tile, stage(0), term_slot(0));
    cp_async_commit();
#pragma unroll 1
    while (start < end) {
      cp_async_wait<0>();
      __syncthreads();  // this step's tiles are there, and all have used those of the last one
      if (WHOLE || ++next_phase == phases) {
        next_phase = 0;
        next_start += kBlock;
      }
      if (next_start < end) {
        load<WHOLE>(next_start, end, next_phase, per_tile, stage(parity ^ 1), term_slot((tile + 1) & 1));
      }
      cp_async_commit();
      const char* now = stage(parity);
      if (WHOLE || phase == 0) {
        a.clear();
        if constexpr (kPair) b.clear();
      }
      if (WHOLE || phase < per_tile) {
        const int chunks = WHOLE ? plan.chunks : 1;
#pragma unroll 1
        for (int i = 0; i < chunks; ++i) {
          const int chunk = phase + i;
          const char* x = resident ? shared_memory + chunk * kTile : now + RIGHTS * kTile;
          const char* y = x + (LEFTS == 2 ? (resident ? plan.chunks * kTile : kTile) : 0);
          const char* z = now + i * kTile;
          Products<Math, LEFTS == 2, RIGHTS == 2>::add(x, y, z, z + (RIGHTS == 2 ? chunks * kTile : 0), width(chunk), a,
                                                       b);
        }
      }
      if (WHOLE || phase == per_tile - 1) use(start, a, b, term_slot(tile & 1));
      if constexpr (SUMS) {
        if (WHOLE || phase == phases - 1) sum(a, b, now, now + (WHOLE ? plan.chunks : 2) * kTile);
      }
      phase = next_phase;
      start = next_start;
      parity ^= 1;
      if (WHOLE || phase == 0) ++tile;
    }
  }

  template <bool WHOLE>
  __device__ void load(int64_t start, int64_t end, int phase, int per_tile, char* stage, float* slot) const {
    const bool columns = !WHOLE && phase == per_tile;  // the step after the products
    const int from = WHOLE ? 0 : columns ? out : phase, rest = plan.chunks - from;
    const int chunks = WHOLE ? plan.chunks : !columns ? 1 : rest < 2 ? rest : 2;
    const int pitch = columns ? 2 : WHOLE ? plan.chunks : 1;
#pragma unroll
    for (int r = 0; r < RIGHTS; ++r) {
#pragma unroll 1
      for (int i = 0; i < chunks; ++i) {
        load_tile<PLACED>(stage + (r * pitch + i) * kTile, right[r], start, end, plan.pitch, int64_t{from + i} * kChunk,
                          placement);
      }
    }
    if (!WHOLE && !plan.resident && !columns) {
#pragma unroll
      for (int l = 0; l < LEFTS; ++l) {
        load_tile(stage + (RIGHTS + l) * kTile, left[l], first, left_end, plan.pitch, int64_t{from} * kChunk);
      }
    }
    if (WHOLE || phase == 0) {
      if constexpr (PLACED) {
        static_assert(TERMS == 1 && ARRAYS == 1);
        for (int row = threadIdx.x; row < kBlock; row += kThreads) {
          const bool present = start + row < end;
          cp_async_4(slot + row, present ? terms[0] + placement.place_of(start + row) : terms[0], present);
        }
      } else {
        constexpr int kPieces = kBlock * TERMS / 4, kAll = ARRAYS * kPieces;
#pragma unroll
        for (int first_piece = 0; first_piece < kAll; first_piece += kThreads) {
          const int piece = first_piece + static_cast<int>(threadIdx.x);
          // By a choice: registers have no addresses.
          const float* source = piece < kPieces ? terms[0] : terms[ARRAYS - 1];
          if (piece >= kAll || (ARRAYS == 2 && !source)) break;
          cp_async_16(slot + 4 * piece, source + start * TERMS + 4 * (piece % kPieces), true);
        }
      }
    }
  }
};

}  // namespace action
