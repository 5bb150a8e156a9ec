// Finishing gradients: partial sums are added in a fixed order, the radial part is removed, and the result divided by
// the row's length. A warp per row.
#include "rows.cuh"

#include "launch.cuh"
#include "library.cuh"

namespace action {
namespace {

constexpr int kRowsPerBlock = 4;

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

const Launcher kFinishGradient = ACTION_LAUNCHER(finish_gradient, FinishGradientParams);

}  // namespace action
