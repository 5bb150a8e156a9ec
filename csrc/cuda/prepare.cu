// Preparing all rows of a call in one launch: what happens once per row, not once per pair. A warp per row.
//
// Rows become contiguous, of one type, padded with zeros, and, if normalised, scaled by a power of two to a length in
// (128, 256]. That is exact, so that 16-bit rows enter the tensor cores with all their bits and float16 neither
// overflows nor underflows; the rest of 1 / |x| is a float32 per row, applied to finished products. Such rows of
// bfloat16 become float16 (stream.cuh).
#include "prepare.cuh"

#include "labels.cuh"

namespace action {
namespace {

constexpr int kRowsPerBlock = 4;
constexpr int kBlockThreads = 32 * kRowsPerBlock;

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
    // The power of two next below 256 times the factor, by its exponent bits; NaN must not become a number. A norm is
    // at most 2^128, or infinite.
    power = __int_as_float(__float_as_int(256.0f * factor) & 0x7F800000);
    power = factor == factor ? fmaxf(power, 0x1p-120f) : factor;
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

/// A block's part of the upstream gradient: its largest magnitude, but for infinite ones and NaN.
__device__ void measure(const Upstream& p, unsigned block) {
  int* shared = reinterpret_cast<int*>(shared_memory);  // a word a warp
  const int64_t first = int64_t{block} * kMeasured, rest = p.count - first;
  int largest = 0;
  for (int i = threadIdx.x; i < kMeasured && i < rest; i += kBlockThreads) {
    const float size = fabsf(p.data[first + i]);
    if (size <= 3.4028235e38f) largest = max(largest, __float_as_int(size));
  }
  largest = __reduce_max_sync(kAllLanes, largest);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = largest;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int warp = 1; warp < kRowsPerBlock; ++warp) largest = max(largest, shared[warp]);
  p.largest[block] = __int_as_float(largest);
}

/// The first blocks take the sets in turn, those behind them the upstream gradient and what is to be filled.
template <class Out>
__global__ void __launch_bounds__(kBlockThreads) prepare(Prepare p) {
  unsigned block = blockIdx.x;
  int which = 0;
  for (; which < kMostSets && block >= p.sets[which].blocks; ++which) block -= p.sets[which].blocks;
  if (which == kMostSets) {
    if (block < p.upstream.blocks) return measure(p.upstream, block);
    block -= p.upstream.blocks;
    int64_t i = int64_t{block} * kBlockThreads + threadIdx.x;
    for (const Fill& fill : p.fills) {
      if (i >= 0 && i < fill.count) fill.data[i] = fill.value;
      i -= fill.count;
    }
    return;
  }
  const RowSet& set = p.sets[which];
  with_raw<Out>(set.dtype, [&](auto raw) { prepare_row<decltype(raw), Out>(p, set, block); });
}

}  // namespace

void prepare(Queue& queue, Prepare call, Dtype out) {
  int64_t count = 0, filled = 0;
  for (RowSet& set : call.sets) count += set.blocks = static_cast<unsigned>(ceil_div(set.total, kRowsPerBlock));
  count += call.upstream.blocks;
  for (const Fill& fill : call.fills) filled += fill.count;
  count += ceil_div(filled, kBlockThreads);
  auto* kernel = of_dtype(out, prepare<float>, prepare<__half>, prepare<__nv_bfloat16>);
  queue.enqueue("prepare", kernel, count, kBlockThreads, call.upstream.blocks ? 4 * kRowsPerBlock : 0, call);
}

}  // namespace action
