// How a selection is made: by limits from group maxima and two passes over the bank, or by the buffer alone; decided by
// sizes. backends/thresholds.py says why limits are enough, and has the error bound.
#pragma once

#include "placement.cuh"
#include "products.cuh"
#include "splits.cuh"

namespace action {

constexpr int64_t kLargestK = 2048;            // a larger one takes the buffer
constexpr int64_t kBufferBytes = 256ll << 20;  // that all buffers may take, more only where a single one needs it

/// Bound of a product's error, relative to the product of the rows' lengths. Where factors are rounded to tf32, they
/// were when the rows were prepared: the collection has no others.
inline float product_error(int64_t width) { return static_cast<float>((width + 8) * 0x1p-22); }

/// Words of verdicts for which a split has room in a query's line. Of a bank in random order 1.4 k rows at the most
/// pass the limits, spread over the splits.
inline int64_t word_capacity(int64_t k, int64_t num_splits) { return 2 * k / num_splits + 32; }

/// How the buffer walks through a bank.
struct BufferPlan {
  int64_t works;  // walks of a block through a split of the bank
  Splits splits;
  int64_t running;   // blocks that share the walks
  int64_t kept;      // candidates of a split
  int64_t limit;     // of what a clearing may leave in a buffer
  int64_t capacity;  // of a buffer, per query
  int64_t quota;     // this many candidates of every split are enough for the selection

  int64_t keys() const { return splits.count * kept; }  // of a query
};

/// The selection of k of `rows` rows for `blocks` tiles of queries.
inline BufferPlan plan_buffer(int64_t blocks, int64_t rows, int64_t k, int64_t multiprocessors = processors()) {
  BufferPlan p{};
  p.splits = splits(blocks, rows, kBlock, multiprocessors);
  p.works = blocks * p.splits.count;
  p.kept = std::min(k, p.splits.span);
  const int64_t room = std::max<int64_t>(p.kept, 2 * kBlock);  // for new candidates
  p.capacity = p.kept + room + kBlock;
  p.limit = p.kept + room / 4;
  p.running = std::min({p.works, 4 * multiprocessors, std::max<int64_t>(1, kBufferBytes / (8 * kBlock * p.capacity))});
  p.quota = ceil_div(k, p.splits.count);
  return p;
}

/// Lanes that share a query's products with a tile: each has a group of the bank of its own.
inline int64_t sharers(Dtype dtype, bool tf32) {
  return with_math(dtype, tf32, [](auto math) { return int64_t{Scores<decltype(math)>::kSharers}; });
}

/// Over how many tiles in succession a group of bank rows goes; 0 where limits are not worth while. 4k groups are
/// plenty, fewer than 2k say too little. Splits of the bank must not be fewer for the sake of groups.
inline int64_t tiles_of_group(int64_t blocks, int64_t rows, int64_t k, int64_t lanes) {
  const int64_t whole = rows / kBlock;
  if (k < 1 || k > kLargestK || lanes * whole < 2 * k) return 0;
  const int64_t wanted = std::max<int64_t>(1, 2 * processors() / blocks);
  int64_t size = 1;
  while (lanes * (whole / (2 * size)) >= 4 * k && whole >= 4 * size * wanted) size *= 2;
  return size;
}

}  // namespace action
