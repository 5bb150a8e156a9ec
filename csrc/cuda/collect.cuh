// From verdicts to a selection: every row that may be among a query's k best gets its similarity, in one defined
// rounding, and the best of them are the selection.
//
// Similarities are summed in float64 and rounded once, so that they depend neither on a tile nor on a GPU. A query of
// which there are too many words or rows is left to the buffer. A block per query.
#pragma once

#include "order.cuh"
#include "placement.cuh"
#include "stream.cuh"
#include "verdicts.cuh"

namespace action {

constexpr int kLanes = 8;       // that share the product of two rows
constexpr int kTogether = 8;    // products that a lane has a part in at a time
constexpr int kPiece = 16;      // bytes of a row that a lane reads at a time
constexpr int kFewWords = 256;  // up to so many words, a warp does it all

/// The words of all queries, and what they speak of.
struct Collect {
  Side query, bank;
  int64_t pitch;
  Placement placement;
  const int64_t* words;  // [G, N, line]
  const int* counts;     // [num_splits, G, N]
  int* found;            // [G, N]: negative for a query that is left to the buffer
  Selected out;
  int64_t line, total;
  int num_splits, capacity, most;
};

/// The elements of a piece of a row.
template <class Math>
struct Piece {
  using T = typename Math::Element;
  static constexpr int kElements = kPiece / sizeof(T);
  alignas(kPiece) T v[kElements];

  __device__ static Piece load(const char* place) { return *reinterpret_cast<const Piece*>(place); }
};

/// A query's selection. Work of a block.
template <class Math>
__device__ void collect_query(const Collect& p, int64_t q) {
  constexpr int kElements = Piece<Math>::kElements;
  const int64_t group = q / p.query.rows;
  int64_t* keys = reinterpret_cast<int64_t*>(shared_memory);  // at first, where the rows are
  int* count = reinterpret_cast<int*>(keys + p.most);         // rows that were found
  const bool flagged = p.found[q] < 0;
  if (threadIdx.x == 0) *count = 0;
  __syncthreads();
  if (flagged) return;
  const int64_t* line = p.words + q * p.line;
  bool fits = true;
  for (int i = threadIdx.x; i < p.num_splits * p.capacity; i += blockDim.x) {
    const int words = p.counts[i / p.capacity * p.total + q];
    fits = fits && words <= p.capacity;
    if (i % p.capacity >= words) continue;
    const auto word = static_cast<uint64_t>(line[i]);
    const auto number = static_cast<uint32_t>(word);
    auto bits = static_cast<uint32_t>(word >> 32);
    int slot = atomicAdd(count, __popc(bits));
    for (; bits; bits &= bits - 1, ++slot) {
      if (slot < p.most) keys[slot] = place_in_word<Math>(number, __ffs(bits) - 1);
    }
  }
  fits = __syncthreads_and(fits) != 0;
  const int found = *count;
  fits = fits && found <= p.most;
  if (threadIdx.x == 0) p.found[q] = fits ? found : -1;
  if (!fits) return;

  const char* query = p.query.data + q * p.pitch;
  const char* bank = p.bank.data + group * p.bank.rows * p.pitch;
  const double q_scale = p.query.scale[group * p.query.padded + q % p.query.rows];
  const int lane = lane_id() % kLanes, own = lane_id() / kLanes, step = 32 / kLanes;
  for (int first = threadIdx.x / 32 * (step * kTogether); first < found; first += blockDim.x * kTogether / kLanes) {
    double product[kTogether] = {};
    for (int64_t at = lane * kPiece; at < p.pitch; at += kLanes * kPiece) {
      const auto piece = Piece<Math>::load(query + at);
      double x[kElements];
#pragma unroll
      for (int e = 0; e < kElements; ++e) x[e] = as_float(piece.v[e]);
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const int entry = first + step * i + own;
        if (entry >= found) continue;
        const auto y = Piece<Math>::load(bank + keys[entry] * p.pitch + at);
#pragma unroll
        for (int e = 0; e < kElements; ++e) product[i] = fma(x[e], static_cast<double>(as_float(y.v[e])), product[i]);
      }
    }
    // Lane i of those that share products keeps the i-th.
    double sum = 0.0;
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      double all = product[i];
#pragma unroll
      for (int away = 1; away < kLanes; away *= 2) all += __shfl_xor_sync(kAllLanes, all, away);
      sum = lane == i ? all : sum;
    }
    const int entry = first + step * lane + own;
    __syncwarp();  // all have read the places
    if (entry >= found) continue;
    const int64_t place = keys[entry];
    const double b_scale = p.bank.scale[group * p.bank.padded + place];
    const auto similarity = static_cast<float>(sum * (q_scale * b_scale));
    keys[entry] = similarity == similarity ? make_key(similarity, p.placement.row_at(place)) : kEmptyKey;
  }
  sort_keys(keys, found);
  write_selected(p.out, q, keys, found);
}

}  // namespace action
