// Preparing rows and finishing gradients: what happens once per row, not once per pair. A warp per row.
//
// In: rows become contiguous, of one type, padded with zeros, and, if normalised, scaled by a power of two to a length
// in (128, 256]. That is exact, so that 16-bit rows enter the tensor cores with all their bits and float16 neither
// overflows nor underflows; the rest of 1 / |x| is a float32 per row, applied to finished products.
// Out: partial sums are added in a fixed order, the radial part is removed, and the result divided by the length.
#include "rows.cuh"

#include "labels.cuh"
#include "launch.cuh"
#include "library.cuh"
#include "products.cuh"

namespace action {
namespace {

constexpr int kRowsPerBlock = 4;

struct Prepare {
  Matrix x;
  void* data;      // [G, N, width]
  float* scale;    // [G, scale_rows]
  float* inverse;  // [G, N] 1 / max(|x|, 1e-12), negative where the norm did not count; or null
  Placement placement;
  const int64_t* labels;  // [G, N], or null
  float* narrow_labels;   // [G, scale_rows]
  int64_t rows, total, scale_rows;
  int features, width;
  bool normalize, tf32;
};

template <class In, class Out>
__global__ void __launch_bounds__(32 * kRowsPerBlock) prepare(Prepare p) {
  const int64_t line = int64_t{blockIdx.x} * kRowsPerBlock + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (line >= p.total) return;  // whole warps
  const int64_t group = line / p.rows, row = line % p.rows, place = p.placement.place_of(row);
  const In* x = static_cast<const In*>(p.x.data) + group * p.x.stride_g + row * p.x.stride_n;
  Out* data = static_cast<Out*>(p.data) + (group * p.rows + place) * p.width;
  float power = 1.0f, scale = 1.0f, inverse = 1.0f;
  if (p.normalize) {
    Squares squares;
    for (int i = lane; i < p.features; i += 32) squares.add(as_float(x[i * p.x.stride_d]));
    const float norm = squares.norm(), factor = unit_factor(norm);
    // 256 times the power of two next below the factor, by its exponent bits; NaN must not become a number.
    power = __int_as_float(__float_as_int(factor) & 0x7F800000) * 256.0f;
    power = factor == factor ? fmaxf(power, 0x1p-100f) : factor;
    scale = __fdiv_rn(factor, power);
    inverse = norm > kSmallestNorm ? factor : -factor;
  }
  for (int i = lane; i < p.width; i += 32) {
    const float value = i < p.features ? as_float(x[i * p.x.stride_d]) * power : 0.0f;
    data[i] = from_float<Out>(p.tf32 ? __int_as_float(round_to_tf32(value)) : value);
  }
  if (lane == 0) {
    p.scale[group * p.scale_rows + place] = scale;
    if (p.inverse) p.inverse[line] = inverse;
    if (p.labels) p.narrow_labels[group * p.scale_rows + place] = narrow_in_bank(p.labels[line]);
  }
}

struct Finish {
  Matrix x;
  const float* partial;  // [parts, G, N, width]
  const float* factor;   // one number, or null
  float* out;            // [G, N, D]
  int64_t rows, total;
  int parts, features, width;
  float constant;
  bool normalize;
};

template <class T>
__global__ void __launch_bounds__(32 * kRowsPerBlock) finish(Finish p) {
  const int64_t line = int64_t{blockIdx.x} * kRowsPerBlock + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (line >= p.total) return;
  const T* x = static_cast<const T*>(p.x.data) + line / p.rows * p.x.stride_g + line % p.rows * p.x.stride_n;
  const float* partial = p.partial + line * p.width;
  float* out = p.out + line * p.features;
  float factor = 1.0f;
  bool counted = false;
  if (p.normalize) {
    Squares squares;
    for (int i = lane; i < p.features; i += 32) squares.add(as_float(x[i * p.x.stride_d]));
    const float norm = squares.norm();
    factor = unit_factor(norm);
    counted = norm > kSmallestNorm;  // a clamped norm is a constant: nothing is radial
  }
  const float scale = p.constant, boost = p.factor ? *p.factor : 1.0f;
  float radial = 0.0f;
  for (int i = lane; i < p.features; i += 32) {
    float grad = 0.0f;
    for (int part = 0; part < p.parts; ++part) grad += partial[int64_t{part} * p.total * p.width + i];
    grad = grad * scale * boost;
    out[i] = grad;
    if (counted) radial = fmaf(as_float(x[i * p.x.stride_d]) * factor, grad, radial);
  }
  if (!p.normalize) return;
  radial = lanes_sum(radial);
  for (int i = lane; i < p.features; i += 32) {
    const float unit = as_float(x[i * p.x.stride_d]) * factor;
    out[i] = (out[i] - (counted ? radial * unit : 0.0f)) * factor;
  }
}

unsigned blocks(int64_t rows) { return static_cast<unsigned>((rows + kRowsPerBlock - 1) / kRowsPerBlock); }

#define PREPARE_ROWS_FIELDS(FIELD)                                                                             \
  FIELD(Tensor, x) /* [G, N, D] */                                                                             \
  FIELD(bool, normalize)                                                                                       \
  FIELD(bool, tf32)           /* round float32 rows to it */                                                   \
  FIELD(int64_t, place_tiles) /* where rows are placed, with the next; 1 and 1: as they are */                 \
  FIELD(int64_t, place_block)                                                                                  \
  FIELD(Tensor, labels)        /* [G, N] int64, or none */                                                     \
  FIELD(Tensor, data)          /* [G, N, padded D], a result like those below */                               \
  FIELD(Tensor, scale)         /* [G, N or more] float32 */                                                    \
  FIELD(Tensor, inverse)       /* [G, N] float32 1 / max(|x|, 1e-12), negative where the norm did not count */ \
  FIELD(Tensor, narrow_labels) /* [G, N or more] float32 as passes over a bank compare them, placed; or none */
ACTION_PARAMS(PrepareRowsParams, PREPARE_ROWS_FIELDS)

int32_t prepare_rows(const PrepareRowsParams& p, void* stream) {
  Checks check(kDevice, p.x);
  const int64_t g = check.size(p.x, "x", 0, 3), n = check.size(p.x, "x", 1, 3), d = check.size(p.x, "x", 2, 3);
  const int64_t width = check.size(p.data, "data", 2, 3), scale_rows = check.size(p.scale, "scale", 1, 2);
  check.rows(p.x, "x", {g, n, d});
  check.contiguous(p.data, "data", p.data.dtype == Dtype::float32 ? Dtype::float32 : p.x.dtype, {g, n, width});
  if (width < d) check.refuse(p.data, "data", "as wide as the rows");
  if (scale_rows < n) check.refuse(p.scale, "scale", "as long as the rows");
  Prepare call{matrix_of(p.x),
               p.data.data,
               check.contiguous<float>(p.scale, "scale", {g, scale_rows}),
               check.optional<float>(p.inverse, "inverse", {g, n}),
               {},
               nullptr,
               nullptr,
               n,
               g * n,
               scale_rows,
               static_cast<int>(d),
               static_cast<int>(width),
               p.normalize,
               p.tf32};
  call.placement = placement_of(check, p.place_tiles, p.place_block, n);
  if (p.labels.given() || p.narrow_labels.given()) {
    call.labels = check.contiguous<int64_t>(p.labels, "labels", {g, n});
    call.narrow_labels = check.contiguous<float>(p.narrow_labels, "narrow_labels", {g, scale_rows});
  }
  if (!check.passed()) return check.status();
  auto* kernel = prepare<float, float>;
  if (p.x.dtype == Dtype::float16)
    kernel = p.data.dtype == Dtype::float16 ? prepare<__half, __half> : prepare<__half, float>;
  if (p.x.dtype == Dtype::bfloat16)
    kernel = p.data.dtype == Dtype::bfloat16 ? prepare<__nv_bfloat16, __nv_bfloat16> : prepare<__nv_bfloat16, float>;
  return enqueue(kernel, blocks(call.total), 32 * kRowsPerBlock, 0, stream, call);
}

#define FINISH_GRADIENT_FIELDS(FIELD)                          \
  FIELD(Tensor, partial) /* [parts, G, N, padded D] float32 */ \
  FIELD(Tensor, factor)  /* [1] float32, or none */            \
  FIELD(double, constant)                                      \
  FIELD(Tensor, x) /* [G, N, D] the raw rows */                \
  FIELD(bool, normalize)                                       \
  FIELD(Tensor, grad) /* [G, N, D] float32, the result */
ACTION_PARAMS(FinishGradientParams, FINISH_GRADIENT_FIELDS)

int32_t finish_gradient(const FinishGradientParams& p, void* stream) {
  Checks check(kDevice, p.x);
  const int64_t g = check.size(p.x, "x", 0, 3), n = check.size(p.x, "x", 1, 3), d = check.size(p.x, "x", 2, 3);
  const int64_t parts = check.size(p.partial, "partial", 0, 4), width = check.size(p.partial, "partial", 3, 4);
  check.rows(p.x, "x", {g, n, d});
  if (width < d) check.refuse(p.partial, "partial", "as wide as the rows");
  const Finish call{matrix_of(p.x),
                    check.contiguous<float>(p.partial, "partial", {parts, g, n, width}),
                    check.optional<float>(p.factor, "factor", {1}),
                    check.contiguous<float>(p.grad, "grad", {g, n, d}),
                    n,
                    g * n,
                    static_cast<int>(parts),
                    static_cast<int>(d),
                    static_cast<int>(width),
                    static_cast<float>(p.constant),
                    p.normalize};
  if (!check.passed()) return check.status();
  auto* kernel = of_dtype(p.x.dtype, finish<float>, finish<__half>, finish<__nv_bfloat16>);
  return enqueue(kernel, blocks(call.total), 32 * kRowsPerBlock, 0, stream, call);
}

}  // namespace

const Launcher kPrepareRows = ACTION_LAUNCHER(prepare_rows, PrepareRowsParams);
const Launcher kFinishGradient = ACTION_LAUNCHER(finish_gradient, FinishGradientParams);

}  // namespace action
