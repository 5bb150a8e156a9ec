// The gradients of the divergence (PAIR) or of one softmax's log-sum-exp: one more pass each, which recomputes every
// probability from the saved log-sum-exps.
//
// Student: grad_i = sum_j (p_s(j) - p_t(j)) bank_j / student_temp, the difference taken before any rounding.
// Carrying both distributions' sums through the bank pass would save the products for the similarities, but the
// difference of nearly equal distributions would be lost to rounding. Unit rows of bfloat16, which are float16 by now,
// take a weight in one term, a float16 number: no difference of probabilities exceeds 1, so a factor brings them to the
// upper end of float16's range, and from 2^-28 on they keep all of its 11 bits. Other 16-bit rows take two terms. Bank:
// the same pass with the roles exchanged. Wide features are split: a block owns two chunks of the result's columns and
// recomputes the similarities over all features; the first of those blocks takes the selection's verdicts. Of one
// softmax, p_s(j) alone is the weight.
#include <type_traits>

#include "passes.cuh"

namespace action {
namespace {

/// What a query's probabilities need.
struct alignas(16) Terms {
  float s_scale, s_center, s_rest, t_scale, t_center, t_rest, grad;
  float middle_center, middle_rest;  // of the student's logit that lies the mean gap below the teacher's center
  float unused[3];
};
static_assert(sizeof(Terms) == kTerms * sizeof(float));

/// Which part of the work is this block's.
struct Part {
  int64_t first, begin, end;
  unsigned split, group;
  int out;  // first chunk of its columns

  __device__ Part(const Gradient& p, int64_t kept, int64_t streamed) {
    // No number here is larger than that of the grid's blocks: 32 bits do.
    const auto outs = static_cast<unsigned>(p.outs), num_splits = static_cast<unsigned>(p.num_splits);
    const auto blocks = static_cast<unsigned>((kept + kBlock - 1) / kBlock);
    out = static_cast<int>(blockIdx.x % outs) * 2;
    const unsigned walk = blockIdx.x / outs, tile = walk / num_splits;
    split = walk % num_splits;
    first = int64_t{tile % blocks} * kBlock;
    group = tile / blocks;
    begin = split * p.span;
    end = begin + p.span < streamed ? begin + p.span : streamed;
  }
};

template <class Math, int TERMS>
__device__ void store(const Gradient& p, const Part& part, int64_t kept, const Sums<Math, TERMS>& sums) {
  const int64_t warp_first = part.first + warp_id() * kWarpRows;
  const int from = part.out * (kChunk / static_cast<int>(sizeof(typename Math::Element)));
  float* target = p.partial + ((part.split * p.groups + part.group) * kept + warp_first) * p.features + from;
  sums.each([&](int row, int feature, float sum) {
    if (warp_first + row < kept && from + feature < p.features) target[int64_t{row} * p.features + feature] = sum;
  });
}

/// Bytes of shared memory that sums need beside the stream.
template <class Math>
__device__ __host__ constexpr int beside_sums() {
  return sizeof(typename Math::Element) == 4 ? 4 * kWeights : 0;
}

template <class Math>
__device__ float* exchange(char* shared) {
  return reinterpret_cast<float*>(shared + warp_id() * kWeights);
}

/// Blocks that a multiprocessor's registers have room for: with one softmax more, where shared memory has, too.
template <bool PAIR, int TERMS>
constexpr int kResident = PAIR         ? 1
                          : TERMS == 1 ? 3
                                       : 2;

template <class Math, bool PAIR, bool VERDICTS, int TERMS>
__global__ void __launch_bounds__(kThreads, kResident<PAIR, TERMS>) student_grad(Gradient p) {
  using Block = Scores<Math>;
  constexpr int kRows = Block::kRows, kColumns = Block::kColumns;
  const Part part(p, p.queries, p.rows);
  Stream<Math, PAIR ? 2 : 1, 1, 1, true, VERDICTS ? 2 : 1> stream;
  stream.plan = p.plan;
  stream.left[0] = p.student + part.group * p.queries * p.plan.pitch;
  if constexpr (PAIR) stream.left[1] = p.teacher + part.group * p.queries * p.plan.pitch;
  stream.right[0] = p.bank + part.group * p.rows * p.plan.pitch;
  stream.terms[0] = p.bank_scale + part.group * p.rows_padded;
  if constexpr (VERDICTS) stream.terms[1] = p.bank_labels ? p.bank_labels + part.group * p.rows_padded : nullptr;
  stream.first = part.first;
  stream.left_end = p.queries;
  stream.out = part.out;

  Terms own[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    // The buffer is padded to whole tiles: rows beyond the end are read, but nothing is stored for them.
    const int64_t row = part.first + warp_id() * kWarpRows + Block::row(r);
    own[r] = reinterpret_cast<const Terms*>(p.terms)[part.group * p.queries_padded + row];
  }
  Sums<Math, TERMS> sums;
  sums.clear();
  Verdicts<Math> found;
  const int64_t warp_first = part.first + warp_id() * kWarpRows, own_first = part.group * p.queries + warp_first;
  const int rows_here = rows_of_warp(warp_first, p.queries);
  const bool first_columns = part.out == 0;
  if constexpr (VERDICTS) {
    char* shared = stream.besides() + beside_sums<Math>() + warp_id() * Verdicts<Math>::kShared;
    found.start(shared, p.words, own_first, rows_here, part.split);
  }
  const auto use = [&](int64_t start, Block& s, Block& t, const float* scale) {
    const int rows = rows_of_tile(start, part.end);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const float b_scale = scale[Block::column(c)];
#pragma unroll
      for (int r = 0; r < kRows; ++r) s.at(r, c) = similarity(s.at(r, c), own[r].s_scale, b_scale);
    }
    if (VERDICTS && first_columns) found.take(s, p.words, start, rows, scale + kBlock);
#pragma unroll
    for (int c = 0; c < kColumns; ++c) {
      const float b_scale = scale[Block::column(c)], factor = b_scale * p.boost;
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const Terms& x = own[r];
        const float log_s = (s.at(r, c) - x.s_center) * p.student_factor - x.s_rest;
        float weight = exp2_fast(log_s);
        if constexpr (PAIR) {
          const float log_t = (similarity(t.at(r, c), x.t_scale, b_scale) - x.t_center) * p.teacher_factor - x.t_rest;
          weight -= exp2_fast(log_t);
        }
        s.at(r, c) = weight * factor;
      }
    }
    if (rows < kBlock) leave_out(s, rows, 0.0f);
  };
  const auto sum = [&](Block& s, Block&, const char* rows, const char*) {
    sums.add(s, rows, stream.out_width(), exchange<Math>(stream.besides()));
  };
  stream.run(part.begin, part.end, use, sum);
  store(p, part, p.queries, sums);
  if (VERDICTS && first_columns) found.finish(p.words, own_first, rows_here, part.split);
}

template <class Math, bool PAIR>
__global__ void __launch_bounds__(kThreads, 2) bank_grad(Gradient p) {
  using Block = Scores<Math>;
  constexpr int kRows = Block::kRows, kColumns = Block::kColumns;
  const Part part(p, p.rows, p.queries);
  Stream<Math, 1, PAIR ? 2 : 1, kTerms, true> stream;
  stream.plan = p.plan;
  stream.left[0] = p.bank + part.group * p.rows * p.plan.pitch;
  stream.right[0] = p.student + part.group * p.queries * p.plan.pitch;
  if constexpr (PAIR) stream.right[1] = p.teacher + part.group * p.queries * p.plan.pitch;
  stream.terms[0] = p.terms + part.group * p.queries_padded * kTerms;
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
      const float grad = x.grad * p.boost, s_factor = grad * x.s_scale * p.student_grad_scale;
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float score = similarity(s.at(r, c), x.s_scale, b_scale[r]);
        float weight = exp2_fast((score - x.s_center) * p.student_factor - x.s_rest);
        if constexpr (PAIR) {
          const float t_logit = (similarity(t.at(r, c), x.t_scale, b_scale[r]) - x.t_center) * p.teacher_factor;
          const float p_t = exp2_fast(t_logit - x.t_rest), t_factor = grad * x.t_scale * p.teacher_grad_scale;
          // log p_t - log p_s - kl = t - s - logit_gap, in which nothing large is rounded. A weight of zero makes the
          // term zero: at the smallest temperatures its logit may be infinite.
          const float beyond = t_logit - ((score - x.middle_center) * p.student_factor - x.middle_rest);
          weight -= p_t;
          t.at(r, c) = p_t != 0.0f ? t_factor * (p_t * beyond) : 0.0f;
        }
        s.at(r, c) = s_factor * weight;
      }
    }
    if (rows < kBlock) {
      leave_out(s, rows, 0.0f);
      if constexpr (PAIR) leave_out(t, rows, 0.0f);
    }
  };
  const auto sum = [&](Block& s, Block& t, const char* s_rows, const char* t_rows) {
    sums.add(s, s_rows, stream.out_width(), exchange<Math>(stream.besides()));
    if constexpr (PAIR) sums.add(t, t_rows, stream.out_width(), exchange<Math>(stream.besides()));
  };
  stream.run(part.begin, part.end, use, sum);
  store(p, part, p.rows, sums);
}

template <class Math>
int shared_of(const Plan& plan, bool bank, bool verdicts) {
  const int besides = beside_sums<Math>() + (verdicts ? 4 * Verdicts<Math>::kShared : 0);
  return shared_bytes(plan, bank ? kTerms : verdicts ? 2 : 1, besides);
}

template <class Math, int TERMS>
auto* student_kernel(const Gradient& p) {
  if (!p.teacher) return student_grad<Math, false, false, TERMS>;
  return p.words.words ? student_grad<Math, true, true, TERMS> : student_grad<Math, true, false, TERMS>;
}

template <class Math>
void run(Queue& queue, const Gradient& p, bool bank, int64_t blocks) {
  const bool verdicts = p.words.words;
  auto* kernel = p.teacher ? bank_grad<Math, true> : bank_grad<Math, false>;
  if (!bank) kernel = student_kernel<Math, 2>(p);
  if constexpr (std::is_same_v<Math, Half>) {
    if (p.one_term) kernel = student_kernel<Math, 1>(p);
  }
  const char* name = bank ? "bank_grad" : "student_grad";
  queue.enqueue(name, kernel, blocks, kThreads, shared_of<Math>(p.plan, bank, verdicts), p);
}

Plan plan_of(int64_t pitch, bool bank, bool pair) {
  return make_plan(pitch, pair && !bank ? 2 : 1, pair && bank ? 2 : 1, true);
}

}  // namespace

void gradient(Queue& queue, Gradient p, const Format& format, bool for_bank) {
  p.plan = plan_of(format.pitch(), for_bank, p.teacher);
  p.features = static_cast<int>(format.width);
  p.outs = static_cast<int>(column_blocks(format));
  const int64_t blocks = p.groups * ceil_div(for_bank ? p.rows : p.queries, kBlock) * p.num_splits * p.outs;
  with_math(format.dtype, format.tf32, [&](auto math) { run<decltype(math)>(queue, p, for_bank, blocks); });
}

}  // namespace action

using namespace action;

/// Bytes of shared memory that a block gets.
ACTION_EXPORT int action_contrast_gradient_shared(int for_bank, int dtype, int tf32, int64_t pitch, int pair,
                                                  int verdicts) {
  const bool bank = for_bank != 0;
  const Plan plan = plan_of(pitch, bank, pair != 0);
  return with_math(static_cast<Dtype>(dtype), tf32 != 0,
                   [&](auto math) { return shared_of<decltype(math)>(plan, bank, verdicts); });
}
