// The divergence's gradients: one more pass each, which takes every probability again from the saved log-sum-exps.
//
// Student: direction_i = sum_j (p_s(j) - p_t(j)) bank_j / student_temp, the difference taken before any rounding.
// Carrying both distributions' sums through the scan would save the products for the similarities, but with 16-bit rows
// those sums take two terms a weight, too, and nearly equal distributions would lose their difference to rounding.
// Bank: the same pass with the roles exchanged. Wide features are split: a block owns two chunks of the result's
// columns and takes the similarities over all features again.
#include "launch.cuh"
#include "online_softmax.cuh"
#include "stream.cuh"

namespace action {
namespace {

struct Gradient {
  Plan plan;
  const char* student;  // [G, N, pitch bytes]
  const char* teacher;
  const char* bank;         // [G, M, pitch bytes]
  const float* terms;       // [G, N padded to whole tiles, 8]
  const float* bank_scale;  // [G, M padded to whole tiles]
  float* partial;           // [shares, G, rows, features]
  int64_t queries, queries_padded, rows, rows_padded;
  int64_t shares, span, groups;  // of the rows that stream by
  int features, outs;            // columns of `partial`; blocks that share them
  float student_factor, teacher_factor, student_slope, teacher_slope, boost;
};

/// What a query's probabilities need.
struct alignas(16) Terms {
  float s_scale, s_center, s_rest, t_scale, t_center, t_rest, grad, kl;
};

/// Which part of the work is this block's.
struct Part {
  int64_t share, first, group, begin, end;
  int out;  // first chunk of its columns

  __device__ Part(const Gradient& p, int64_t kept, int64_t streamed) {
    int64_t work = blockIdx.x;
    out = static_cast<int>(work % p.outs) * 2;
    work /= p.outs;
    share = work % p.shares;
    const int64_t blocks = (kept + kBlock - 1) / kBlock;
    first = work / p.shares % blocks * kBlock;
    group = work / p.shares / blocks;
    begin = share * p.span;
    end = begin + p.span < streamed ? begin + p.span : streamed;
  }
};

template <class Math>
__device__ void store(const Gradient& p, const Part& part, int64_t kept, const Sums<Math>& sums) {
  const int64_t warp_first = part.first + warp_id() * kWarpRows;
  const int from = part.out * (kChunk / static_cast<int>(sizeof(typename Math::Element)));
  float* target = p.partial + ((part.share * p.groups + part.group) * kept + warp_first) * p.features + from;
  sums.each([&](int row, int feature, float sum) {
    if (warp_first + row < kept && from + feature < p.features) target[int64_t{row} * p.features + feature] = sum;
  });
}

template <class Math>
__device__ float* exchange(char* shared) {
  return reinterpret_cast<float*>(shared + warp_id() * kWeights);
}

template <class Math>
__global__ void __launch_bounds__(kThreads) direction(Gradient p) {
  using Block = Scores<Math>;
  constexpr int kRows = Block::kRows, kColumns = Block::kColumns;
  const Part part(p, p.queries, p.rows);
  Stream<Math, 2, 1, 1, true> stream;
  stream.plan = p.plan;
  stream.left[0] = p.student + part.group * p.queries * p.plan.pitch;
  stream.left[1] = p.teacher + part.group * p.queries * p.plan.pitch;
  stream.right[0] = p.bank + part.group * p.rows * p.plan.pitch;
  stream.terms = p.bank_scale + part.group * p.rows_padded;
  stream.first = part.first;
  stream.left_end = p.queries;
  stream.out = part.out;

  Terms own[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    // The buffer is padded to whole tiles: rows behind the end are read, but nothing of theirs is stored.
    const int64_t row = part.first + warp_id() * kWarpRows + Block::row(r);
    own[r] = reinterpret_cast<const Terms*>(p.terms)[part.group * p.queries_padded + row];
  }
  Sums<Math> sums;
  sums.clear();
  const auto use = [&](int64_t start, Block& s, Block& t, const float* scale) {
    const int rows = rows_of_tile(start, part.end);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const float b_scale = scale[Block::column(c)], factor = b_scale * p.boost;
      const bool inside = Block::column(c) < rows;
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const Terms& x = own[r];
        const float log_s = (similarity(s.at(r, c), x.s_scale, b_scale) - x.s_center) * p.student_factor - x.s_rest;
        const float log_t = (similarity(t.at(r, c), x.t_scale, b_scale) - x.t_center) * p.teacher_factor - x.t_rest;
        s.at(r, c) = inside ? (exp2_fast(log_s) - exp2_fast(log_t)) * factor : 0.0f;
      }
    }
  };
  const auto sum = [&](Block& s, Block&, const char* rows, const char*) {
    sums.add(s, rows, stream.out_width(), exchange<Math>(stream.besides()));
  };
  stream.run(part.begin, part.end, use, sum);
  store(p, part, p.queries, sums);
}

template <class Math>
__global__ void __launch_bounds__(kThreads, 2) bank_gradient(Gradient p) {
  using Block = Scores<Math>;
  constexpr int kRows = Block::kRows, kColumns = Block::kColumns;
  const Part part(p, p.rows, p.queries);
  Stream<Math, 1, 2, 8, true> stream;
  stream.plan = p.plan;
  stream.left[0] = p.bank + part.group * p.rows * p.plan.pitch;
  stream.right[0] = p.student + part.group * p.queries * p.plan.pitch;
  stream.right[1] = p.teacher + part.group * p.queries * p.plan.pitch;
  stream.terms = p.terms + part.group * p.queries_padded * 8;
  stream.first = part.first;
  stream.left_end = p.rows;
  stream.out = part.out;

  float b_scale[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    b_scale[r] = p.bank_scale[part.group * p.rows_padded + part.first + warp_id() * kWarpRows + Block::row(r)];
  }
  Sums<Math> sums;
  sums.clear();
  const auto use = [&](int64_t start, Block& s, Block& t, const float* terms) {
    const int rows = rows_of_tile(start, part.end);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const Terms& x = reinterpret_cast<const Terms*>(terms)[Block::column(c)];
      const bool inside = Block::column(c) < rows;
      const float grad = x.grad * p.boost;
      const float s_slope = grad * x.s_scale * p.student_slope, t_slope = grad * x.t_scale * p.teacher_slope;
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float log_s = (similarity(s.at(r, c), x.s_scale, b_scale[r]) - x.s_center) * p.student_factor - x.s_rest;
        const float log_t = (similarity(t.at(r, c), x.t_scale, b_scale[r]) - x.t_center) * p.teacher_factor - x.t_rest;
        const float p_s = exp2_fast(log_s), p_t = exp2_fast(log_t);
        s.at(r, c) = inside ? s_slope * (p_s - p_t) : 0.0f;
        t.at(r, c) = inside ? t_slope * (p_t * ((log_t - log_s) - x.kl)) : 0.0f;
      }
    }
  };
  const auto sum = [&](Block& s, Block& t, const char* s_rows, const char* t_rows) {
    sums.add(s, s_rows, stream.out_width(), exchange<Math>(stream.besides()));
    sums.add(t, t_rows, stream.out_width(), exchange<Math>(stream.besides()));
  };
  stream.run(part.begin, part.end, use, sum);
  store(p, part, p.rows, sums);
}

template <class Math>
int shared_of(const Plan& plan, bool bank) {
  return shared_bytes(plan, bank ? 8 : 1, sizeof(typename Math::Element) == 4 ? 4 * kWeights : 0);
}

template <class Math>
int run(const Gradient& p, bool bank, int64_t blocks, void* stream) {
  return launch(bank ? bank_gradient<Math> : direction<Math>, static_cast<unsigned>(blocks), kThreads,
                shared_of<Math>(p.plan, bank), stream, p);
}

Plan plan_of(int64_t pitch, bool bank) { return make_plan(pitch, bank ? 1 : 2, bank ? 2 : 1, true); }

int64_t tiles(int64_t rows) { return (rows + kBlock - 1) / kBlock; }

}  // namespace
}  // namespace action

using namespace action;

/// Both gradients of the divergence, as partial sums: in the bank's rows if `bank`, else in the student's.
ACTION_EXPORT int action_contrast_gradient(int bank_wanted, const void* student, const void* teacher, const void* bank,
                                           const float* terms, const float* bank_scale, int dtype, int tf32,
                                           int64_t pitch, int64_t groups, int64_t queries, int64_t queries_padded,
                                           int64_t rows, int64_t rows_padded, int64_t shares, int64_t span,
                                           float student_factor, float teacher_factor, float student_slope,
                                           float teacher_slope, float boost, float* partial, void* stream) {
  Gradient p{};
  const bool for_bank = bank_wanted != 0;
  p.plan = plan_of(pitch, for_bank);
  p.student = static_cast<const char*>(student);
  p.teacher = static_cast<const char*>(teacher);
  p.bank = static_cast<const char*>(bank);
  p.terms = terms;
  p.bank_scale = bank_scale;
  p.partial = partial;
  p.queries = queries;
  p.queries_padded = queries_padded;
  p.rows = rows;
  p.rows_padded = rows_padded;
  p.shares = shares;
  p.span = span;
  p.groups = groups;
  p.features = static_cast<int>(pitch / (dtype == kFloat32 ? 4 : 2));
  p.outs = (p.plan.chunks + 1) / 2;
  p.student_factor = student_factor;
  p.teacher_factor = teacher_factor;
  p.student_slope = student_slope;
  p.teacher_slope = teacher_slope;
  p.boost = boost;
  const int64_t blocks = groups * tiles(for_bank ? rows : queries) * shares * p.outs;
  if (dtype == kFloat16) return run<Half>(p, for_bank, blocks, stream);
  if (dtype == kBfloat16) return run<Bfloat>(p, for_bank, blocks, stream);
  return tf32 ? run<Tf32>(p, for_bank, blocks, stream) : run<Exact>(p, for_bank, blocks, stream);
}

/// Bytes of shared memory that a block gets.
ACTION_EXPORT int action_contrast_gradient_shared(int bank_wanted, int dtype, int tf32, int64_t pitch) {
  const bool bank = bank_wanted != 0;
  const Plan plan = plan_of(pitch, bank);
  if (dtype == kFloat16) return shared_of<Half>(plan, bank);
  if (dtype == kBfloat16) return shared_of<Bfloat>(plan, bank);
  return tf32 ? shared_of<Tf32>(plan, bank) : shared_of<Exact>(plan, bank);
}
