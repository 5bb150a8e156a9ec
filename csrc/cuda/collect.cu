// From verdicts to keys: every row that may be among a query's k best gets its similarity, in one defined rounding.
//
// Similarities are summed in float64 and rounded once, so that they depend neither on a tile nor on a GPU. Keys take
// the place of the words, in no particular order. A query of which there are too many words or rows is left to the
// buffer. A block per query.
#include "library.cuh"
#include "placement.cuh"
#include "select.cuh"
#include "stream.cuh"
#include "verdicts.cuh"

namespace action {
namespace {

constexpr int kLanes = 8;         // that share the product of two rows
constexpr int kTogether = 8;      // products that a lane has a part in at a time
constexpr int kPiece = 16;        // bytes of a row that a lane reads at a time
constexpr int kMostFound = 4096;  // rows of a query, as many as order_keys sorts
constexpr int kFewWords = 256;    // up to so many words, a warp does it all

struct Collect {
  Side query, bank;
  int64_t pitch;
  Placement placement;
  int64_t* words;     // [G, N, line]; keys in the end
  const int* counts;  // [num_splits, G, N]
  int* found;         // [G, N]
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

template <class Math>
__global__ void __launch_bounds__(128) collect(Collect p) {
  constexpr int kElements = Piece<Math>::kElements;
  const int64_t q = blockIdx.x, group = q / p.query.rows;
  int* count = reinterpret_cast<int*>(shared_memory);  // rows that were found
  uint32_t* places = reinterpret_cast<uint32_t*>(count + 1);
  const bool flagged = p.found[q] < 0;
  if (threadIdx.x == 0) *count = 0;
  __syncthreads();
  if (flagged) return;
  int64_t* line = p.words + q * p.line;
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
      if (slot < p.most) places[slot] = static_cast<uint32_t>(place_in_word<Math>(number, __ffs(bits) - 1));
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
        const auto y = Piece<Math>::load(bank + places[entry] * p.pitch + at);
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
    if (entry >= found) continue;
    const int64_t place = places[entry];
    const double b_scale = p.bank.scale[group * p.bank.padded + place];
    const auto similarity = static_cast<float>(sum * (q_scale * b_scale));
    line[entry] = similarity == similarity ? make_key(similarity, p.placement.row_at(place)) : kEmptyKey;
  }
}

template <class Math>
int32_t run(const Collect& p, void* stream) {
  const int threads = p.num_splits * p.capacity <= kFewWords ? 32 : 128;
  return enqueue(collect<Math>, static_cast<unsigned>(p.total), threads, 4 * (p.most + 1), stream, p);
}

#define COLLECT_FIELDS(FIELD)                                                                 \
  FIELD(Tensor, query)        /* [G, N, padded D] prepared rows */                            \
  FIELD(Tensor, query_scale)  /* [G, N padded to whole tiles] float32 */                      \
  FIELD(Tensor, bank)         /* [G, M, padded D] */                                          \
  FIELD(Tensor, bank_scale)   /* [G, M padded to whole tiles] float32 */                      \
  FIELD(bool, tf32)           /* float32 rows have been rounded to it */                      \
  FIELD(int64_t, place_tiles) /* how the bank's rows are placed, with the next */             \
  FIELD(int64_t, place_block)                                                                 \
  FIELD(int64_t, capacity) /* words that a split may have for a query */                      \
  FIELD(Tensor, counts)    /* [num_splits, G, N] int32 words that there would be */           \
  FIELD(Tensor, words)     /* [G, N, line] int64; in the end, keys: a result like the next */ \
  FIELD(Tensor, found)     /* [G, N] int32 how many; stays -1, or becomes it, where the buffer has to select */
ACTION_PARAMS(CollectParams, COLLECT_FIELDS)

int32_t collect_launcher(const CollectParams& p, void* stream) {
  Checks check(kDevice, p.query);
  const int64_t g = check.size(p.query, "query", 0, 3), n = check.size(p.query, "query", 1, 3);
  const int64_t width = check.size(p.query, "query", 2, 3), m = check.size(p.bank, "bank", 1, 3);
  const int64_t line = check.size(p.words, "words", 2, 3), num_splits = check.size(p.counts, "counts", 0, 3);
  const Dtype dtype = p.query.dtype;
  check.rows(p.query, "query", {g, n, width});
  Collect call{};
  call.query = side_of(check, p.query, "query", p.query_scale, "query_scale", dtype, g, n, width);
  call.bank = side_of(check, p.bank, "bank", p.bank_scale, "bank_scale", dtype, g, m, width);
  call.placement = placement_of(check, p.place_tiles, p.place_block, m);
  call.words = check.contiguous<int64_t>(p.words, "words", {g, n, line});
  call.counts = check.contiguous<int32_t>(p.counts, "counts", {num_splits, g, n});
  call.found = check.contiguous<int32_t>(p.found, "found", {g, n});
  check.require(p.capacity > 0 && p.capacity <= line && num_splits * p.capacity <= line && line <= INT32_MAX,
                "capacity words of every split must fit a line");
  call.pitch = width * (dtype == Dtype::float32 ? 4 : 2);
  call.line = line;
  call.total = g * n;
  call.num_splits = static_cast<int>(num_splits);
  call.capacity = static_cast<int>(p.capacity);
  call.most = static_cast<int>(line < kMostFound ? line : kMostFound);
  if (!check.passed()) return check.status();
  return with_math(dtype, p.tf32, [&](auto math) { return run<decltype(math)>(call, stream); });
}

}  // namespace

const Launcher kCollect{"collect", untyped<CollectParams, collect_launcher>, ACTION_LAYOUT(CollectParams)};

}  // namespace action
