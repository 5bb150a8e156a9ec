// Verdicts on the rows of a bank, packed: which of them may be among a query's k best. Work of one warp.
//
// The verdicts of a lane on a tile and a query are bits of one word. Words that are not empty are appended to the
// query's line, in the part of it that the split of the bank has, in no particular order. A line that is too short is
// noticed afterwards, by its counts.
#pragma once

#include "labels.cuh"
#include "products.cuh"

namespace action {

/// What a pass compares with, and where its verdicts go.
struct Words {
  const float* limits;          // [G, N]
  const int64_t* query_labels;  // [G, N], or null
  int64_t* words;               // [G, N, line]: verdicts above the number of the word, from 0 at the bank's first row
  int* counts;                  // [num_splits, G, N] words that a split had for a query, stored or not
  int64_t line, total;          // total: G N
  int capacity;                 // of a split
};

/// The bits of a word that speak of row r of a lane.
template <class Math>
__device__ constexpr unsigned bits_of_row(int r) {
  unsigned bits = 0;
  for (int i = 0; i < 32; ++i) bits |= Scores<Math>::r_of(i) == r ? 1u << i : 0u;
  return bits;
}

/// Where in the bank the row is kept that a bit of a word speaks of.
template <class Math>
__device__ int64_t place_in_word(uint32_t number, int bit) {
  constexpr unsigned kSharers = Scores<Math>::kSharers;
  return int64_t{number / kSharers} * kBlock + Scores<Math>::column(Scores<Math>::c_of(bit), number % kSharers);
}

/// A warp's verdicts on its 16 queries. All that lasts is in shared memory: registers are scarcer than loads.
template <class Math>
struct Verdicts {
  using Block = Scores<Math>;
  static_assert(Block::kRows * Block::kColumns == 32);

  struct Own {
    int64_t line;  // where the first query's part of its line begins
    int counts[kWarpRows];
    float limits[kWarpRows], labels[kWarpRows];
  };
  static constexpr int kShared = sizeof(Own);  // bytes a warp

  Own* own;

  /// Before a walk through a split: queries `first`... of all are this warp's, as many as exist.
  __device__ void start(char* shared, const Words& p, int64_t first, int rows, int64_t split) {
    own = reinterpret_cast<Own*>(shared);
    if (lane_id() == 0) own->line = first * p.line + split * p.capacity;
    if (const int i = lane_id(); i < kWarpRows) {
      own->counts[i] = 0;
      own->limits[i] = i < rows ? p.limits[first + i] : INFINITY;
      own->labels[i] = i < rows && p.query_labels ? narrow_own(p.query_labels[first + i]) : -1.0f;
    }
    __syncwarp();
  }

  /// A tile of similarities, of which the first `rows` columns exist. `labels`: those of its bank rows.
  __device__ void take(Block& s, const Words& p, int64_t start, int rows, const float* labels) {
    float limit[Block::kRows];
#pragma unroll
    for (int r = 0; r < Block::kRows; ++r) limit[r] = own->limits[Block::row(r)];
    unsigned better = 0;
    if (p.query_labels) {
      float label[Block::kRows];
#pragma unroll
      for (int r = 0; r < Block::kRows; ++r) label[r] = own->labels[Block::row(r)];
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        const int r = Block::r_of(i);
        const bool reached = s.v[i] >= limit[r] && of_another_class(labels[Block::column(Block::c_of(i))], label[r]);
        better |= static_cast<unsigned>(reached) << i;
      }
    } else {
#pragma unroll
      for (int i = 0; i < 32; ++i) better |= static_cast<unsigned>(s.v[i] >= limit[Block::r_of(i)]) << i;
    }
    if (better == 0) return;
    if (rows < kBlock) {  // the last tile
#pragma unroll
      for (int i = 0; i < 32; ++i) better &= Block::column(Block::c_of(i)) < rows ? ~0u : ~(1u << i);
    }
    const auto number = static_cast<uint32_t>(start / kBlock) * Block::kSharers + lane_id() % Block::kSharers;
#pragma unroll
    for (int r = 0; r < Block::kRows; ++r) {
      const unsigned bits = better & bits_of_row<Math>(r);
      if (bits == 0) continue;
      const int row = Block::row(r), slot = atomicAdd(own->counts + row, 1);
      if (slot >= p.capacity) continue;
      p.words[own->line + row * p.line + slot] = static_cast<int64_t>(uint64_t{bits} << 32 | number);
    }
  }

  /// After a walk.
  __device__ void finish(const Words& p, int64_t first, int rows, int64_t split) {
    __syncwarp();
    if (lane_id() < rows) p.counts[split * p.total + first + lane_id()] = own->counts[lane_id()];
  }
};

}  // namespace action
