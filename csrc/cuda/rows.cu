// Rows on their way in and gradients on their way out: what happens once per row, not once per pair. A warp per row.
//
// In: rows become contiguous, of one type, padded with zeros, and, if normalised, scaled by a power of two to a length
// in (128, 256]. That is exact, so that 16-bit rows enter the tensor cores with all their bits and float16 neither
// overflows nor underflows; the rest of 1 / |x| is a float32 per row, applied to finished products.
// Out: partial sums are added in a fixed order, the radial part is cut and the length divided out.
#include "rows.cuh"

#include "launch.cuh"
#include "products.cuh"

namespace action {
namespace {

constexpr int kRowsPerBlock = 4;

struct Prepare {
  Matrix x;
  void* data;      // [G, N, width]
  float* scale;    // [G, scale_rows]
  float* inverse;  // [G, N] 1 / max(|x|, 1e-12), negative where the norm did not count; or null
  int64_t rows, total, scale_rows;
  int features, width;
  bool normalize, tf32;
};

template <class In, class Out>
__global__ void __launch_bounds__(32 * kRowsPerBlock) prepare(Prepare p) {
  const int64_t line = int64_t{blockIdx.x} * kRowsPerBlock + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (line >= p.total) return;  // whole warps
  const int64_t group = line / p.rows, row = line % p.rows;
  const In* x = static_cast<const In*>(p.x.data) + group * p.x.stride_g + row * p.x.stride_n;
  Out* data = static_cast<Out*>(p.data) + line * p.width;
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
    p.scale[group * p.scale_rows + row] = scale;
    if (p.inverse) p.inverse[line] = inverse;
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

}  // namespace
}  // namespace action

using namespace action;

ACTION_EXPORT int action_prepare(const void* x, int dtype, int64_t stride_g, int64_t stride_n, int64_t stride_d,
                                 void* data, int out_dtype, float* scale, float* inverse, int64_t groups, int64_t rows,
                                 int features, int width, int64_t scale_rows, int normalize, int tf32, void* stream) {
  const Prepare p{{x, stride_g, stride_n, stride_d}, data, scale, inverse, rows, groups * rows, scale_rows,
                  features, width, normalize != 0, tf32 != 0};
  auto* kernel = prepare<float, float>;
  if (dtype == kFloat16) kernel = out_dtype == kFloat16 ? prepare<__half, __half> : prepare<__half, float>;
  if (dtype == kBfloat16)
    kernel = out_dtype == kBfloat16 ? prepare<__nv_bfloat16, __nv_bfloat16> : prepare<__nv_bfloat16, float>;
  return launch(kernel, blocks(p.total), 32 * kRowsPerBlock, 0, stream, p);
}

ACTION_EXPORT int action_finish(const float* partial, int parts, const float* factor, float constant, const void* x,
                                int dtype, int64_t stride_g, int64_t stride_n, int64_t stride_d, float* out,
                                int64_t groups, int64_t rows, int features, int width, int normalize, void* stream) {
  const Finish p{{x, stride_g, stride_n, stride_d}, partial, factor, out, rows, groups * rows, parts,
                 features, width, constant, normalize != 0};
  auto* kernel = dtype == kFloat16 ? finish<__half> : dtype == kBfloat16 ? finish<__nv_bfloat16> : finish<float>;
  return launch(kernel, blocks(p.total), 32 * kRowsPerBlock, 0, stream, p);
}
