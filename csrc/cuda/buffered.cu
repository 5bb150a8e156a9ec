// The selection by a buffer: for any bank, any k and any labels, at the price of every candidate on the way.
//
// A block keeps 64 queries and walks through its split of the bank, in the bank's own order, in which later rows lose
// ties: a row whose similarity only equals the k-th best so far cannot enter. A block none of whose queries is to be
// selected for leaves at once. Beside a selection by limits, the last block of a tile of queries puts their keys into
// order; without, all queries are selected for, and ordered by a block each (order.cu).
#include "last_block.cuh"
#include "passes.cuh"

namespace action {
namespace {

/// Blocks that a multiprocessor's registers have room for.
template <class Math>
constexpr int kResident = 3;
template <>
constexpr int kResident<Exact> = 2;

/// Puts the keys of a tile's queries into order, whose first is `q` of all. Work of a block.
__device__ void order_tile(const Buffered& p, int64_t q, int rows, unsigned wanted) {
  int count = static_cast<int>(p.num_splits) * p.k;
  if (count > kSorted) {
    const int k = static_cast<int>(p.out.k);
    for (; wanted; wanted &= wanted - 1) {
      shorten(p.keys + (q + warp_id() * kWarpRows + __ffs(wanted) - 1) * p.line, count, k);
    }
    count = k;
  }
  for (int row = 0; row < rows; ++row) {
    if (p.found[q + row] < 0) order_line(p.out, q + row, p.keys + (q + row) * p.line, count);
  }
  __syncthreads();  // shared memory is the next walk's
}

template <class Math>
__global__ void __launch_bounds__(kThreads, kResident<Math>) buffered(Buffered p) {
  using Block = Scores<Math>;
  const int64_t blocks = (p.query.rows + kBlock - 1) / kBlock;
  // The buffers are scratch of a block, so a limited number of blocks takes all the pieces of work in turn.
  for (int64_t work = blockIdx.x; work < p.works; work += gridDim.x) {
    const int64_t split = work % p.num_splits, tile = work / p.num_splits;
    const int64_t first = tile % blocks * kBlock, group = tile / blocks;
    const int64_t begin = split * p.span, end = begin + p.span < p.bank.rows ? begin + p.span : p.bank.rows;
    const int64_t warp_first = first + warp_id() * kWarpRows, q = group * p.query.rows + warp_first;

    bool is_wanted = lane_id() < rows_of_warp(warp_first, p.query.rows);
    if (p.found) is_wanted = is_wanted && p.found[q + lane_id()] < 0;
    if (!__syncthreads_or(is_wanted)) continue;
    const unsigned wanted = __ballot_sync(kAllLanes, is_wanted);

    Stream<Math, 1, 1, 1, false, 1, true> stream;
    stream.plan = p.plan;
    stream.left[0] = p.query.data + group * p.query.rows * p.plan.pitch;
    stream.right[0] = p.bank.data + group * p.bank.rows * p.plan.pitch;
    stream.terms[0] = p.bank.scale + group * p.bank.padded;
    stream.first = first;
    stream.left_end = p.query.rows;
    stream.out = 0;
    stream.placement = p.placement;

    float scale[Block::kRows];
#pragma unroll
    for (int r = 0; r < Block::kRows; ++r) {
      const int64_t row = warp_first + Block::row(r);
      scale[r] = row < p.query.rows ? p.query.scale[group * p.query.padded + row] : 0.0f;
    }
    Selection<Math> selection;
    const typename Selection<Math>::Places places{
        (int64_t{blockIdx.x} * kBlock + warp_id() * kWarpRows) * p.capacity,
        group * p.bank.rows,
        q,
        q * p.num_splits,
    };
    selection.buffers = p.buffer;
    selection.bank_labels = p.bank_labels;
    selection.query_labels = p.query_labels;
    selection.all_floors = p.floors;
    selection.k = p.k;
    selection.limit = p.limit;
    selection.capacity = p.capacity;
    selection.start(stream.besides() + warp_id() * Selection<Math>::kShared, places, is_wanted);

    const auto use = [&](int64_t start, Block& s, Block&, const float* b_scales) {
      scale_products(s, scale, b_scales);
      if (const int rows = rows_of_tile(start, end); rows < kBlock) leave_out(s, rows);
      selection.take(s, start, end);
      const unsigned tiles = static_cast<unsigned>((start - begin) / kBlock) + 1;
      if (p.floors && (tiles & (tiles - 1)) == 0) {
        selection.exchange(static_cast<int>(split), static_cast<int>(p.num_splits), p.quota, wanted);
      }
    };
    stream.run(begin, end, use, [](Block&, Block&, const char*, const char*) {});
    selection.finish(p.keys + q * p.line + split * p.k, p.line, wanted);
    if (p.found && is_last_block(p.arrived + tile, p.num_splits)) {
      order_tile(p, q - warp_id() * kWarpRows, rows_of_tile(first, p.query.rows), wanted);
    }
  }
}

template <class Math>
int shared_of(const Plan& plan) {
  const int walking = shared_bytes(plan, 1, 4 * Selection<Math>::kShared), ordering = 8 * kSorted;
  return walking < ordering ? ordering : walking;
}

Plan plan_of(int64_t pitch) { return make_plan(pitch, 1, 1, false); }

}  // namespace

void buffered(Queue& queue, Buffered p, const Format& format, int64_t running) {
  p.plan = plan_of(format.pitch());
  with_math(format.dtype, format.tf32, [&](auto math) {
    using Math = decltype(math);
    queue.enqueue("buffered", buffered<Math>, running, kThreads, shared_of<Math>(p.plan), p);
  });
}

}  // namespace action

using namespace action;

/// Bytes of shared memory that a block of the pass gets.
ACTION_EXPORT int action_buffered_shared(int dtype, int tf32, int64_t pitch) {
  const Plan plan = plan_of(pitch);
  return with_math(static_cast<Dtype>(dtype), tf32 != 0, [&](auto math) { return shared_of<decltype(math)>(plan); });
}
