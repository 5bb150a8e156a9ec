// The first pass over the bank: the sums of SIDES softmaxes (student and teacher with the divergence between them, or
// one, or none), and the best similarity in each group of bank rows.
//
// A block keeps 64 queries and walks through its split of the bank. Similarities stay in registers; every thread
// keeps its own maxima over the columns that it holds, so that nothing is exchanged before the end of the walk: a group
// is what one lane holds of some tiles in succession. Few queries against a long bank still fill a GPU: splits of the
// bank are merged, by the last block to come to the end of a tile of queries. Beside maxima that is a launch of its own
// (merge_and_limit.cu): limits take longer, and that block's warps would have 16 to find each, one after the other.
#include <type_traits>

#include "labels.cuh"
#include "last_block.cuh"
#include "passes.cuh"

namespace action {
namespace {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
constexpr int kWithBoth = 2;  // as many as the shared memory of an A100 holds
#else
constexpr int kWithBoth = 3;
#endif

/// Blocks that a multiprocessor's registers have room for: four with maxima alone, two with everything at once.
template <class Math, int SIDES, bool MAXIMA>
constexpr int kResident = SIDES == 0   ? 4
                          : SIDES == 1 ? 3
                          : MAXIMA     ? 2
                                       : kWithBoth;
template <int SIDES, bool MAXIMA>
constexpr int kResident<Exact, SIDES, MAXIMA> = SIDES == 1 ? 3 : 2;

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
__device__ void find_longest(const BankPass& p, int64_t group, int64_t blocks_of_group) {
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
__global__ void __launch_bounds__(kThreads, kResident<Math, SIDES, MAXIMA>) bank_pass(BankPass p) {
  using Block = Scores<Math>;
  constexpr bool kPair = SIDES == 2;
  constexpr int kRows = Block::kRows, kColumns = Block::kColumns;
  const int64_t queries = p.student.rows;
  const auto blocks = static_cast<unsigned>((queries + kBlock - 1) / kBlock);
  const auto num_splits = static_cast<unsigned>(p.num_splits);  // no more than blocks of the grid: 32 bits do for all
  const unsigned split = blockIdx.x % num_splits, tile = blockIdx.x / num_splits, group = tile / blocks;
  const int64_t first = int64_t{tile % blocks} * kBlock;
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
  if constexpr (!MAXIMA) {
    if (is_last_block(p.arrived + tile, p.num_splits) && threadIdx.x < rows_of_tile(first, queries)) {
      merge_row(p.merge, group * queries + first + threadIdx.x);
    }
  }
}

template <class Math>
int shared_of(const Plan& plan, bool maxima) {
  return shared_bytes(plan, maxima ? 2 : 1, 0);
}

template <class Math>
void run(Queue& queue, const BankPass& p, int64_t blocks) {
  const bool maxima = p.maxima;
  auto* kernel = bank_pass<Math, 0, true>;
  if (p.statistics) kernel = bank_pass<Math, 1, false>;
  if (p.teacher.data) kernel = maxima ? bank_pass<Math, 2, true> : bank_pass<Math, 2, false>;
  queue.enqueue("bank_pass", kernel, blocks, kThreads, shared_of<Math>(p.plan, maxima), p);
}

Plan plan_of(int64_t pitch, bool pair) { return make_plan(pitch, pair ? 2 : 1, 1, false); }

}  // namespace

void bank_pass(Queue& queue, BankPass p, const Format& format, int64_t groups) {
  p.plan = plan_of(format.pitch(), p.teacher.data);
  p.total = groups * p.student.rows;
  const int64_t blocks = groups * ceil_div(p.student.rows, kBlock) * p.num_splits;
  with_math(format.dtype, format.tf32, [&](auto math) { run<decltype(math)>(queue, p, blocks); });
}

}  // namespace action

using namespace action;

/// Bytes of shared memory that a block of the pass gets.
ACTION_EXPORT int action_bank_pass_shared(int dtype, int tf32, int64_t pitch, int sides, int maxima) {
  const Plan plan = plan_of(pitch, sides == 2);
  return with_math(static_cast<Dtype>(dtype), tf32 != 0,
                   [&](auto math) { return shared_of<decltype(math)>(plan, maxima); });
}
