// Preparing all rows of a call in one launch: what happens once per row, not once per pair. A warp per row.
//
// Rows become contiguous, of one type, padded with zeros, and, if normalised, scaled by a power of two to a length in
// (128, 256]. That is exact, so that 16-bit rows enter the tensor cores with all their bits and float16 neither
// overflows nor underflows; the rest of 1 / |x| is a float32 per row, applied to finished products.
#include "labels.cuh"
#include "launch.cuh"
#include "library.cuh"
#include "placement.cuh"
#include "products.cuh"

namespace action {
namespace {

constexpr int kRowsPerBlock = 4;
constexpr int kBlockThreads = 32 * kRowsPerBlock;
constexpr int kMostSets = 3;  // queries, or two sets of them, and a bank

struct RowSet {
  Matrix x;
  void* data;      // [G, rows, width]
  float* scale;    // [G, scale_rows]
  float* inverse;  // [G, rows] 1 / max(|x|, 1e-12), negative where the norm did not count; or null
  float* largest;  // [G, rows] of a row's magnitudes, NaN for one with NaN; or null
  Placement placement;
  const int64_t* labels;  // [G, rows], or null
  float* narrow_labels;   // [G, scale_rows]
  int64_t rows, total, scale_rows;
  unsigned blocks;  // none where the set is not given
  Dtype dtype;
};

/// Memory that kernels behind this one begin with.
struct Fill {
  int* data;
  int64_t count;
  int value;
};
constexpr int kMostFills = 3;

struct Prepare {
  RowSet sets[kMostSets];
  Fill fills[kMostFills];
  int features, width;
  bool normalize, tf32;
};

template <class In, class Out>
__device__ void prepare_row(const Prepare& p, const RowSet& set, unsigned block) {
  const int64_t line = int64_t{block} * kRowsPerBlock + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (line >= set.total) return;  // whole warps
  const int64_t group = line / set.rows, row = line % set.rows, place = set.placement.place_of(row);
  const In* x = static_cast<const In*>(set.x.data) + group * set.x.stride_g + row * set.x.stride_n;
  Out* data = static_cast<Out*>(set.data) + (group * set.rows + place) * p.width;
  float power = 1.0f, scale = 1.0f, inverse = 1.0f;
  if (p.normalize) {
    Squares squares;
    for (int i = lane; i < p.features; i += 32) squares.add(as_float(x[i * set.x.stride_d]));
    const float norm = squares.norm(), factor = unit_factor(norm);
    // 256 times the power of two next below the factor, by its exponent bits; NaN must not become a number.
    power = __int_as_float(__float_as_int(factor) & 0x7F800000) * 256.0f;
    power = factor == factor ? fmaxf(power, 0x1p-100f) : factor;
    scale = __fdiv_rn(factor, power);
    inverse = norm > kSmallestNorm ? factor : -factor;
  }
  int largest = 0;  // by its bits, among which those of NaN are the largest
  for (int i = lane; i < p.width; i += 32) {
    const float value = i < p.features ? as_float(x[i * set.x.stride_d]) * power : 0.0f;
    largest = max(largest, __float_as_int(fabsf(value)));
    data[i] = from_float<Out>(p.tf32 ? __int_as_float(round_to_tf32(value)) : value);
  }
  if (set.largest) largest = __reduce_max_sync(kAllLanes, largest);
  if (lane == 0) {
    if (set.largest) set.largest[line] = __int_as_float(largest);
    set.scale[group * set.scale_rows + place] = scale;
    if (set.inverse) set.inverse[line] = inverse;
    if (set.labels) set.narrow_labels[group * set.scale_rows + place] = narrow_in_bank(set.labels[line]);
  }
}

/// The first blocks take the sets in turn, those behind them what is to be filled.
template <class Out>
__global__ void __launch_bounds__(kBlockThreads) prepare(Prepare p) {
  unsigned block = blockIdx.x;
  int which = 0;
  for (; which < kMostSets && block >= p.sets[which].blocks; ++which) block -= p.sets[which].blocks;
  if (which == kMostSets) {
    int64_t i = int64_t{block} * kBlockThreads + threadIdx.x;
    for (const Fill& fill : p.fills) {
      if (i >= 0 && i < fill.count) fill.data[i] = fill.value;
      i -= fill.count;
    }
    return;
  }
  const RowSet& set = p.sets[which];
  if constexpr (sizeof(Out) == 4) {  // of any types
    if (set.dtype == Dtype::float16) return prepare_row<__half, Out>(p, set, block);
    if (set.dtype == Dtype::bfloat16) return prepare_row<__nv_bfloat16, Out>(p, set, block);
  }
  prepare_row<Out, Out>(p, set, block);
}

unsigned blocks(int64_t count, int of_block) { return static_cast<unsigned>((count + of_block - 1) / of_block); }

#define PREPARE_FIELDS(FIELD)                                                                                      \
  FIELD(Tensor, query)          /* [G, N, D] */                                                                    \
  FIELD(Tensor, query_data)     /* [G, N, padded D], a result like the next two */                                 \
  FIELD(Tensor, query_scale)    /* [G, N or more] float32 */                                                       \
  FIELD(Tensor, query_inverse)  /* [G, N] float32 1 / max(|x|, 1e-12), negative where the norm did not count */    \
  FIELD(Tensor, second)         /* [G, N, D] more of the queries' kind, or none; likewise */                       \
  FIELD(Tensor, second_data)    /* [G, N, padded D] */                                                             \
  FIELD(Tensor, second_scale)   /* [G, N or more] float32 */                                                       \
  FIELD(Tensor, second_inverse) /* [G, N] float32, or none */                                                      \
  FIELD(Tensor, bank)           /* [G, M, D], or none; likewise */                                                 \
  FIELD(Tensor, bank_data)      /* [G, M, padded D] */                                                             \
  FIELD(Tensor, bank_scale)     /* [G, M or more] float32 */                                                       \
  FIELD(Tensor, labels)         /* [G, M] int64 of the bank's rows, or none */                                     \
  FIELD(Tensor, narrow_labels)  /* [G, M or more] float32 as passes over the bank compare them, placed; or none */ \
  FIELD(int64_t, place_tiles)   /* where the bank's rows are placed, with the next; 1 and 1: as they are */        \
  FIELD(int64_t, place_block)                                                                                      \
  FIELD(bool, normalize)                                                                                           \
  FIELD(bool, tf32)            /* round float32 rows to it */                                                      \
  FIELD(Tensor, floors)        /* [G, N, num_splits] int32 become the lowest, for `buffered`; or none */           \
  FIELD(Tensor, arrived)       /* [G, tiles of queries] int32 become zero, likewise; or none */                    \
  FIELD(Tensor, longest)       /* [G] int32 become zero, for `bank_pass`; or none, like the next two */            \
  FIELD(Tensor, query_largest) /* [G, N] float32 the largest magnitude of every row, NaN for one with NaN */       \
  FIELD(Tensor, bank_largest)  /* [G, M] float32 */
ACTION_PARAMS(PrepareParams, PREPARE_FIELDS)

/// How the sets of a call are alike.
struct Common {
  Dtype out;
  int64_t groups, features, width;
};

struct Names {
  const char *x, *data, *scale;
};

RowSet set_of(Checks& check, const Tensor& x, const Tensor& data, const Tensor& scale, const Names& names, int64_t rows,
              const Common& common) {
  const int64_t g = common.groups, scale_rows = check.size(scale, names.scale, 1, 2);
  check.rows(x, names.x, {g, rows, common.features});
  if (common.out != Dtype::float32 && x.dtype != common.out) check.refuse(x, names.x, name_of(common.out));
  if (scale_rows < rows) check.refuse(scale, names.scale, "as long as the rows");
  RowSet set{};
  set.x = matrix_of(x);
  set.data = check.contiguous(data, names.data, common.out, {g, rows, common.width});
  set.scale = check.contiguous<float>(scale, names.scale, {g, scale_rows});
  set.rows = rows;
  set.total = g * rows;
  set.scale_rows = scale_rows;
  set.blocks = blocks(set.total, kRowsPerBlock);
  set.dtype = x.dtype;
  return set;
}

int32_t prepare_launcher(const PrepareParams& p, void* stream) {
  Checks check(kDevice, p.query);
  const int64_t g = check.size(p.query, "query", 0, 3), n = check.size(p.query, "query", 1, 3);
  const int64_t d = check.size(p.query, "query", 2, 3), width = check.size(p.query_data, "query_data", 2, 3);
  if (width < d) check.refuse(p.query_data, "query_data", "as wide as the rows");
  const Common common{p.query_data.dtype == Dtype::float32 ? Dtype::float32 : p.query.dtype, g, d, width};
  Prepare call{};
  call.sets[0] = set_of(check, p.query, p.query_data, p.query_scale, {"query", "query_data", "query_scale"}, n, common);
  call.sets[0].inverse = check.optional<float>(p.query_inverse, "query_inverse", {g, n});
  if (p.second.given()) {
    const Names names{"second", "second_data", "second_scale"};
    call.sets[1] = set_of(check, p.second, p.second_data, p.second_scale, names, n, common);
    call.sets[1].inverse = check.optional<float>(p.second_inverse, "second_inverse", {g, n});
  }
  if (p.bank.given()) {
    const int64_t m = check.size(p.bank, "bank", 1, 3);
    RowSet& bank = call.sets[2];
    bank = set_of(check, p.bank, p.bank_data, p.bank_scale, {"bank", "bank_data", "bank_scale"}, m, common);
    bank.placement = placement_of(check, p.place_tiles, p.place_block, m);
    if (p.labels.given() || p.narrow_labels.given()) {
      bank.labels = check.contiguous<int64_t>(p.labels, "labels", {g, m});
      bank.narrow_labels = check.contiguous<float>(p.narrow_labels, "narrow_labels", {g, bank.scale_rows});
    }
  }
  if (p.floors.given()) {
    const int64_t num_splits = check.size(p.floors, "floors", 2, 3);
    call.fills[0] = {check.contiguous<int32_t>(p.floors, "floors", {g, n, num_splits}), g * n * num_splits, INT32_MIN};
  }
  if (p.arrived.given()) {
    const int64_t tiles = (n + kBlock - 1) / kBlock;
    call.fills[1] = {check.contiguous<int32_t>(p.arrived, "arrived", {g, tiles}), g * tiles, 0};
  }
  if (p.longest.given() || p.query_largest.given() || p.bank_largest.given()) {
    call.fills[2] = {check.contiguous<int32_t>(p.longest, "longest", {g}), g, 0};
    call.sets[0].largest = check.contiguous<float>(p.query_largest, "query_largest", {g, n});
    call.sets[2].largest = check.contiguous<float>(p.bank_largest, "bank_largest", {g, call.sets[2].rows});
  }
  call.features = static_cast<int>(d);
  call.width = static_cast<int>(width);
  call.normalize = p.normalize;
  call.tf32 = p.tf32;
  if (!check.passed()) return check.status();
  int64_t filled = 0;
  for (const Fill& fill : call.fills) filled += fill.count;
  unsigned count = blocks(filled, kBlockThreads);
  for (const RowSet& set : call.sets) count += set.blocks;
  auto* kernel = of_dtype(common.out, prepare<float>, prepare<__half>, prepare<__nv_bfloat16>);
  return enqueue(kernel, count, kBlockThreads, 0, stream, call);
}

}  // namespace

const Launcher kPrepare{"prepare", untyped<PrepareParams, prepare_launcher>, ACTION_LAYOUT(PrepareParams)};

}  // namespace action
