// The first pass over the bank: the sums of SIDES softmaxes (student and teacher with the divergence between them, or
// one, or none), and the best similarity in each group of bank rows.
//
// A block keeps 64 queries and walks through its split of the bank. Similarities stay in registers; every thread
// keeps its own maxima over the columns that it holds, so that nothing is exchanged before the end of the walk: a group
// is what one lane holds of some tiles in succession. Splits are merged afterwards (merge_and_limit.cu), so that few
// queries against a long bank still fill a GPU.
#include <type_traits>

#include "labels.cuh"
#include "launch.cuh"
#include "library.cuh"
#include "online_softmax.cuh"
#include "stream.cuh"

namespace action {
namespace {

struct Pass {
  Plan plan;
  Side student, teacher, bank;
  float* statistics;            // [6, num_splits, G, N], of one softmax [2, ...], or null
  const int64_t* query_labels;  // [G, N], or null
  const float* bank_labels;     // [G, M padded to whole tiles], or null
  float* maxima;                // [G, N, line]
  const float* bank_largest;    // [G, M] a row's largest magnitude, or null: unit rows
  int* longest;                 // [G] bits of the largest of them
  int64_t line, num_splits, span, total;
  float student_factor, teacher_factor;
  uint32_t tiles_of_group;  // a power of two
};

/// Blocks that a multiprocessor's registers have room for: two with exact products, or with everything at once.
template <class Math, bool BOTH>
constexpr int kResident = BOTH ? 2 : 3;
template <bool BOTH>
constexpr int kResident<Exact, BOTH> = 2;

/// The best eligible similarity of each of a warp's 16 queries in each group.
template <class Math>
struct Maxima {
  using Block = Scores<Math>;

  float best[Block::kRows], own_label[Block::kRows];

  __device__ void clear() {
#pragma unroll
    for (float& x : best) x = kLowest;
  }

  /// A tile of similarities. `labels`: those of its bank rows, or null.
  __device__ void take(Block& s, const float* labels) {
    if (labels) {
#pragma unroll
      for (int c = 0; c < Block::kColumns; ++c) {
        const float label = labels[Block::column(c)];
#pragma unroll
        for (int r = 0; r < Block::kRows; ++r) {
          best[r] = fmaxf(best[r], of_another_class(label, own_label[r]) ? s.at(r, c) : kLowest);
        }
      }
    } else {
#pragma unroll
      for (int i = 0; i < Block::kRows * Block::kColumns; ++i) {
        best[Block::r_of(i)] = fmaxf(best[Block::r_of(i)], s.v[i]);
      }
    }
  }

  /// After a group's last tile: `place` is where the group's maxima of the warp's first query begin.
  __device__ void store(float* place, int64_t line, int rows) {
#pragma unroll
    for (int r = 0; r < Block::kRows; ++r) {
      if (Block::row(r) < rows) place[Block::row(r) * line + lane_id() % Block::kSharers] = best[r];
    }
    clear();
  }
};

/// A block's part in finding the largest magnitude in the bank of its group. Rows with NaN are never selected.
__device__ void find_longest(const Pass& p, int64_t group, int64_t blocks_of_group) {
  int longest = 0;
  for (int64_t row = blockIdx.x % blocks_of_group * kThreads + threadIdx.x; row < p.bank.rows;
       row += blocks_of_group * kThreads) {
    const float largest = p.bank_largest[group * p.bank.rows + row];
    if (largest == largest) longest = max(longest, __float_as_int(largest));
  }
  longest = __reduce_max_sync(kAllLanes, longest);
  if (lane_id() == 0) atomicMax(p.longest + group, longest);
}

template <class Math, int SIDES, bool MAXIMA>
__global__ void __launch_bounds__(kThreads, kResident<Math, SIDES == 2 && MAXIMA>) bank_pass(Pass p) {
  using Block = Scores<Math>;
  constexpr bool kPair = SIDES == 2;
  constexpr int kRows = Block::kRows, kColumns = Block::kColumns;
  const int64_t queries = p.student.rows, blocks = (queries + kBlock - 1) / kBlock;
  const int64_t split = blockIdx.x % p.num_splits, tile = blockIdx.x / p.num_splits;
  const int64_t first = tile % blocks * kBlock, group = tile / blocks;
  const int64_t begin = split * p.span, end = begin + p.span < p.bank.rows ? begin + p.span : p.bank.rows;
  const int64_t warp_first = first + warp_id() * kWarpRows;
  if constexpr (MAXIMA) {
    if (p.longest) find_longest(p, group, blocks * p.num_splits);
  }

  Stream<Math, kPair ? 2 : 1, 1, 1, false, MAXIMA ? 2 : 1> stream;
  stream.plan = p.plan;
  stream.left[0] = p.student.data + group * queries * p.plan.pitch;
  if constexpr (kPair) stream.left[1] = p.teacher.data + group * queries * p.plan.pitch;
  stream.right[0] = p.bank.data + group * p.bank.rows * p.plan.pitch;
  stream.terms[0] = p.bank.scale + group * p.bank.padded;
  if constexpr (MAXIMA) stream.terms[1] = p.bank_labels ? p.bank_labels + group * p.bank.padded : nullptr;
  stream.first = first;
  stream.left_end = queries;
  stream.out = 0;

  float s_scale[kRows], t_scale[kRows];
  std::conditional_t<kPair, Divergence, LogSum> seen[kRows];
  Maxima<Math> maxima;
  if constexpr (MAXIMA) maxima.clear();
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int64_t row = warp_first + Block::row(r);
    const bool inside = row < queries;
    s_scale[r] = inside ? p.student.scale[group * p.student.padded + row] : 0.0f;
    if constexpr (kPair) t_scale[r] = inside ? p.teacher.scale[group * p.teacher.padded + row] : 0.0f;
    if constexpr (MAXIMA) {
      maxima.own_label[r] = inside && p.query_labels ? narrow_own(p.query_labels[group * queries + row]) : -1.0f;
    }
  }

  const auto use = [&](int64_t start, Block& s, Block& t, const float* scale) {
    scale_products(s, s_scale, scale);
    if constexpr (kPair) scale_products(t, t_scale, scale);
    if (const int rows = rows_of_tile(start, end); rows < kBlock) {
      leave_out(s, rows);
      if constexpr (kPair) leave_out(t, rows);
    }
    if constexpr (MAXIMA) {
      maxima.take(s, p.query_labels ? scale + kBlock : nullptr);
      const auto tile = static_cast<uint32_t>(start / kBlock);
      if (((tile + 1) & (p.tiles_of_group - 1)) == 0 || start + kBlock >= end) {
        const int64_t place = int64_t{tile / p.tiles_of_group} * Block::kSharers;
        maxima.store(p.maxima + (group * queries + warp_first) * p.line + place, p.line,
                     rows_of_warp(warp_first, queries));
      }
    }
    if constexpr (SIDES == 1) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        float top = seen[r].max;
#pragma unroll
        for (int c = 0; c < kColumns; ++c) top = fmaxf(top, s.at(r, c));
        seen[r].move(top, p.student_factor);
#pragma unroll
        for (int c = 0; c < kColumns; ++c) seen[r].add(s.at(r, c), p.student_factor);
      }
    }
    if constexpr (kPair) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        float s_top = seen[r].s_max, t_top = seen[r].t_max, there = seen[r].s_there;
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          there = t.at(r, c) > t_top ? s.at(r, c) : there;
          s_top = fmaxf(s_top, s.at(r, c));
          t_top = fmaxf(t_top, t.at(r, c));
        }
        seen[r].move(s_top, t_top, there, p.student_factor, p.teacher_factor);
#pragma unroll
        for (int c = 0; c < kColumns; ++c) seen[r].add(s.at(r, c), t.at(r, c), p.student_factor, p.teacher_factor);
      }
    }
  };
  stream.run(begin, end, use, [](Block&, Block&, const char*, const char*) {});

  if constexpr (SIDES > 0) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if constexpr (kPair) {
        seen[r].template merge_lanes<Block::kSharers>(p.student_factor, p.teacher_factor);
      } else {
        seen[r].template merge_lanes<Block::kSharers>(p.student_factor);
      }
      const int64_t row = warp_first + Block::row(r);
      if (row < queries && lane_id() % Block::kSharers == 0) {
        float* place = p.statistics + split * p.total + group * queries + row;
        const int64_t step = p.num_splits * p.total;
        if constexpr (kPair) {
          place[0] = seen[r].s_max;
          place[step] = seen[r].s_sum;
          place[2 * step] = seen[r].t_max;
          place[3 * step] = seen[r].t_sum;
          place[4 * step] = seen[r].gap;
          place[5 * step] = seen[r].s_there;
        } else {
          place[0] = seen[r].max;
          place[step] = seen[r].sum;
        }
      }
    }
  }
}

template <class Math>
int shared_of(const Plan& plan, bool maxima) {
  return shared_bytes(plan, maxima ? 2 : 1, 0);
}

template <class Math>
int32_t run(const Pass& p, int64_t blocks, void* stream) {
  const bool maxima = p.maxima;
  auto* kernel = bank_pass<Math, 0, true>;
  if (p.statistics) kernel = bank_pass<Math, 1, false>;
  if (p.teacher.data) kernel = maxima ? bank_pass<Math, 2, true> : bank_pass<Math, 2, false>;
  return enqueue(kernel, static_cast<unsigned>(blocks), kThreads, shared_of<Math>(p.plan, maxima), stream, p);
}

Plan plan_of(int64_t pitch, bool pair) { return make_plan(pitch, pair ? 2 : 1, 1, false); }

#define BANK_PASS_FIELDS(FIELD)                                                                 \
  FIELD(Tensor, student)       /* [G, N, padded D] prepared rows */                             \
  FIELD(Tensor, student_scale) /* [G, N padded to whole tiles] float32 */                       \
  FIELD(Tensor, teacher)       /* [G, N, padded D], or none */                                  \
  FIELD(Tensor, teacher_scale) /* [G, N padded] float32, or none */                             \
  FIELD(Tensor, bank)          /* [G, M, padded D] */                                           \
  FIELD(Tensor, bank_scale)    /* [G, M padded] float32 */                                      \
  FIELD(bool, tf32)            /* float32 rows have been rounded to it */                       \
  FIELD(int64_t, num_splits)   /* of the bank */                                                \
  FIELD(int64_t, span)         /* bank rows of a split */                                       \
  FIELD(double, student_temp)                                                                   \
  FIELD(double, teacher_temp)                                                                   \
  FIELD(Tensor, query_labels)    /* [G, N] int64, or none */                                    \
  FIELD(Tensor, bank_labels)     /* [G, M padded to whole tiles] float32 of prepare, or none */ \
  FIELD(int64_t, tiles_of_group) /* a power of two; 0: no maxima */                             \
  FIELD(Tensor, statistics)      /* [6, num_splits, G, N] float32, [2, ...] of one; or none */  \
  FIELD(Tensor, maxima)          /* [G, N, groups] float32, a result like the last; or none */  \
  FIELD(Tensor, bank_largest)    /* [G, M] float32 of prepare; or none: unit rows */            \
  FIELD(Tensor, longest)         /* [G] int32 zeros, that become the bits of the largest */
ACTION_PARAMS(BankPassParams, BANK_PASS_FIELDS)

int32_t bank_pass_launcher(const BankPassParams& p, void* stream) {
  Checks check(kDevice, p.student);
  const int64_t g = check.size(p.student, "student", 0, 3), n = check.size(p.student, "student", 1, 3);
  const int64_t width = check.size(p.student, "student", 2, 3), m = check.size(p.bank, "bank", 1, 3);
  const Dtype dtype = p.student.dtype;
  check.rows(p.student, "student", {g, n, width});
  Pass call{};
  call.plan = plan_of(width * (dtype == Dtype::float32 ? 4 : 2), p.teacher.given());
  call.student = side_of(check, p.student, "student", p.student_scale, "student_scale", dtype, g, n, width);
  if (p.teacher.given())
    call.teacher = side_of(check, p.teacher, "teacher", p.teacher_scale, "teacher_scale", dtype, g, n, width);
  call.bank = side_of(check, p.bank, "bank", p.bank_scale, "bank_scale", dtype, g, m, width);
  check_splits(check, p.num_splits, p.span, m);
  const bool one = p.statistics.given() && !p.teacher.given();
  check.require(p.teacher.given() || one != p.maxima.given(), "without a teacher there must be statistics or maxima");
  if (p.teacher.given() || one)
    call.statistics = check.contiguous<float>(p.statistics, "statistics", {one ? 2 : 6, p.num_splits, g, n});
  if (p.maxima.given()) {
    const int64_t size = p.tiles_of_group, tiles = (m + kBlock - 1) / kBlock;
    const bool power = size > 0 && (size & (size - 1)) == 0 && size <= tiles;
    check.require(power && (p.num_splits == 1 || p.span / kBlock % size == 0),
                  "tiles_of_group must be a power of two that divides the tiles of a split");
    const int lanes = dtype == Dtype::float32 && !p.tf32 ? Scores<Exact>::kSharers : Scores<Tf32>::kSharers;
    call.line = power ? (tiles + size - 1) / size * lanes : 0;
    call.maxima = check.contiguous<float>(p.maxima, "maxima", {g, n, call.line});
    call.tiles_of_group = static_cast<uint32_t>(size);
    if (p.bank_largest.given() || p.longest.given()) {
      call.bank_largest = check.contiguous<float>(p.bank_largest, "bank_largest", {g, m});
      call.longest = check.contiguous<int32_t>(p.longest, "longest", {g});
    }
    if (p.query_labels.given() || p.bank_labels.given()) {
      call.query_labels = check.contiguous<int64_t>(p.query_labels, "query_labels", {g, n});
      call.bank_labels = streamed_terms(check, p.bank_labels, "bank_labels", m, {g, call.bank.padded});
    }
  }
  call.num_splits = p.num_splits;
  call.span = p.span;
  call.total = g * n;
  call.student_factor = static_cast<float>(kLog2e / p.student_temp);
  call.teacher_factor = static_cast<float>(kLog2e / p.teacher_temp);
  if (!check.passed()) return check.status();
  const int64_t count = g * ((n + kBlock - 1) / kBlock) * p.num_splits;
  return with_math(dtype, p.tf32, [&](auto math) { return run<decltype(math)>(call, count, stream); });
}

}  // namespace

const Launcher kBankPass{"bank_pass", untyped<BankPassParams, bank_pass_launcher>, ACTION_LAYOUT(BankPassParams)};

}  // namespace action

using namespace action;

/// Bytes of shared memory that a block of the pass gets.
ACTION_EXPORT int action_bank_pass_shared(int dtype, int tf32, int64_t pitch, int sides, int maxima) {
  const Plan plan = plan_of(pitch, sides == 2);
  return with_math(static_cast<Dtype>(dtype), tf32 != 0,
                   [&](auto math) { return shared_of<decltype(math)>(plan, maxima); });
}
