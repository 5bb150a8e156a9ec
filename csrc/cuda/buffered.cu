// The selection by a buffer: for any bank, any k and any labels, at the price of every candidate on the way.
//
// A block keeps 64 queries and walks through its split of the bank, in the bank's own order, in which later rows lose
// ties: a row whose similarity only equals the k-th best so far cannot enter. A block none of whose queries is to be
// selected for leaves at once. Beside a selection by limits, the last block of a tile of queries puts their keys into
// order; without, all queries are selected for, and ordered by a block each (order.cu).
#include "last_block.cuh"
#include "launch.cuh"
#include "library.cuh"
#include "online_softmax.cuh"
#include "order.cuh"
#include "stream.cuh"

namespace action {
namespace {

struct Pass {
  Plan plan;
  Side query, bank;             // the bank's rows and scales are placed
  const int64_t* query_labels;  // [G, N], or null
  const int64_t* bank_labels;   // [G, M] in the bank's own order
  const int* found;             // [G, N]: -1 for the queries to select for; or null: all of them
  int* arrived;                 // [G, tiles of queries] blocks that have come to the end, with `found`
  Selected out;                 // likewise
  int64_t* keys;                // [G, N, line]
  int64_t* buffer;              // [blocks, 64, capacity]
  int* floors;                  // [G, N, num_splits], or null
  int64_t works, num_splits, span, line;
  Placement placement;
  int k, limit, capacity, quota;
};

/// Blocks that a multiprocessor's registers have room for.
template <class Math>
constexpr int kResident = 3;
template <>
constexpr int kResident<Exact> = 2;

/// Puts the keys of a tile's queries into order, whose first is `q` of all. Work of a block.
__device__ void order_tile(const Pass& p, int64_t q, int rows, unsigned wanted) {
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
__global__ void __launch_bounds__(kThreads, kResident<Math>) buffered(Pass p) {
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

template <class Math>
int32_t run(const Pass& p, unsigned blocks, void* stream) {
  return enqueue(buffered<Math>, blocks, kThreads, shared_of<Math>(p.plan), stream, p);
}

Plan plan_of(int64_t pitch) { return make_plan(pitch, 1, 1, false); }

#define BUFFERED_FIELDS(FIELD)                                                                     \
  FIELD(Tensor, query)        /* [G, N, padded D] prepared rows */                                 \
  FIELD(Tensor, query_scale)  /* [G, N padded to whole tiles] float32 */                           \
  FIELD(Tensor, bank)         /* [G, M, padded D] */                                               \
  FIELD(Tensor, bank_scale)   /* [G, M padded to whole tiles] float32 */                           \
  FIELD(bool, tf32)           /* float32 rows have been rounded to it */                           \
  FIELD(int64_t, place_tiles) /* how the bank's rows are placed, with the next */                  \
  FIELD(int64_t, place_block)                                                                      \
  FIELD(int64_t, num_splits)  /* of the bank */                                                    \
  FIELD(int64_t, span)        /* bank rows of a split */                                           \
  FIELD(Tensor, query_labels) /* [G, N] int64, or none */                                          \
  FIELD(Tensor, bank_labels)  /* [G, M] int64 in the bank's own order, or none */                  \
  FIELD(Tensor, found)        /* [G, N] int32 -1 for the queries to select for; none: all */       \
  FIELD(int64_t, kept)        /* candidates of a split */                                          \
  FIELD(int64_t, limit)       /* of what a clearing may leave in a buffer */                       \
  FIELD(int64_t, quota)       /* this many candidates of every split are enough altogether */      \
  FIELD(Tensor, buffer)       /* [blocks, 64, capacity] int64 */                                   \
  FIELD(Tensor, floors)       /* [G, N, num_splits] int32, all the lowest; or none */              \
  FIELD(Tensor, keys)         /* [G, N, num_splits kept or more] int64, the result; with found: */ \
  FIELD(Tensor, arrived)      /* [G, tiles of queries] int32 zeros */                              \
  FIELD(Tensor, similarity)   /* [G, N, k] float32 of the queries to select for, as the next */    \
  FIELD(Tensor, index)        /* [G, N, k] int64 */
ACTION_PARAMS(BufferedParams, BUFFERED_FIELDS)

int32_t buffered_launcher(const BufferedParams& p, void* stream) {
  Checks check(kDevice, p.query);
  const int64_t g = check.size(p.query, "query", 0, 3), n = check.size(p.query, "query", 1, 3);
  const int64_t width = check.size(p.query, "query", 2, 3), m = check.size(p.bank, "bank", 1, 3);
  const int64_t blocks = check.size(p.buffer, "buffer", 0, 3), capacity = check.size(p.buffer, "buffer", 2, 3);
  const int64_t line = check.size(p.keys, "keys", 2, 3);
  const Dtype dtype = p.query.dtype;
  check.rows(p.query, "query", {g, n, width});
  Pass call{};
  call.plan = plan_of(width * (dtype == Dtype::float32 ? 4 : 2));
  call.query = side_of(check, p.query, "query", p.query_scale, "query_scale", dtype, g, n, width);
  call.bank = side_of(check, p.bank, "bank", p.bank_scale, "bank_scale", dtype, g, m, width);
  call.placement = placement_of(check, p.place_tiles, p.place_block, m);
  check_splits(check, p.num_splits, p.span, m);
  if (p.query_labels.given() || p.bank_labels.given()) {
    call.query_labels = check.contiguous<int64_t>(p.query_labels, "query_labels", {g, n});
    call.bank_labels = check.contiguous<int64_t>(p.bank_labels, "bank_labels", {g, m});
  }
  if (p.found.given()) {
    call.found = check.contiguous<int32_t>(p.found, "found", {g, n});
    call.arrived = check.contiguous<int32_t>(p.arrived, "arrived", {g, (n + kBlock - 1) / kBlock});
    call.out = selected_of(check, p.similarity, p.index, g, n);
    check.require(call.out.k <= kSorted && p.num_splits * p.kept <= INT32_MAX / 2,
                  "index must have no more places than a block sorts");
  }
  call.buffer = check.contiguous<int64_t>(p.buffer, "buffer", {blocks, kBlock, capacity});
  call.floors = check.optional<int32_t>(p.floors, "floors", {g, n, p.num_splits});
  call.keys = check.contiguous<int64_t>(p.keys, "keys", {g, n, line});
  check.require(p.kept > 0 && p.kept <= p.span && p.kept <= p.limit && p.limit + kBlock <= capacity && p.quota > 0 &&
                    p.num_splits * p.kept <= line,
                "kept, limit and quota must fit the span, the buffer, the keys and each other");
  call.works = g * ((n + kBlock - 1) / kBlock) * p.num_splits;
  call.num_splits = p.num_splits;
  call.span = p.span;
  call.line = line;
  call.k = static_cast<int>(p.kept);
  call.limit = static_cast<int>(p.limit);
  call.capacity = static_cast<int>(capacity);
  call.quota = static_cast<int>(p.quota);
  if (!check.passed()) return check.status();
  const unsigned count = static_cast<unsigned>(blocks);
  return with_math(dtype, p.tf32, [&](auto math) { return run<decltype(math)>(call, count, stream); });
}

}  // namespace

const Launcher kBuffered{"buffered", untyped<BufferedParams, buffered_launcher>, ACTION_LAYOUT(BufferedParams)};

}  // namespace action

using namespace action;

/// Bytes of shared memory that a block of the pass gets.
ACTION_EXPORT int action_buffered_shared(int dtype, int tf32, int64_t pitch) {
  const Plan plan = plan_of(pitch);
  return with_math(static_cast<Dtype>(dtype), tf32 != 0, [&](auto math) { return shared_of<decltype(math)>(plan); });
}
