// One pass over the bank: both softmaxes' sums, the divergence between them, and the candidates for the selection.
//
// A block keeps 64 queries and walks through its share of the bank. Similarities live in registers only; every thread
// follows its own maxima over the columns that it holds, so that nothing is exchanged before the end of the walk.
// Shares are merged afterwards (merge.cu), so that few queries against a long bank still fill a GPU.
#include "launch.cuh"
#include "online_softmax.cuh"
#include "select.cuh"
#include "stream.cuh"

namespace action {
namespace {

struct Side {
  const char* data;    // [G, rows, pitch bytes]
  const float* scale;  // [G, rows padded to whole tiles]
  int64_t rows, padded;
};

struct Scan {
  Plan plan;
  Side student, teacher, bank;
  float* statistics;            // [5, shares, G, N]
  const int64_t* query_labels;  // [G, N], or null
  const int64_t* bank_labels;   // [G, M]
  int64_t* keys;                // [G, N, shares, k]
  int64_t* buffer;              // [blocks, 64, capacity]
  int* floors;                  // [G, N, shares], or null
  int64_t works, shares, span, total;
  float student_factor, teacher_factor;
  int k, limit, capacity, quota;
};

/// Blocks that share a processor, as far as registers go: with exact products, or with everything at once, two.
template <class Math, bool BOTH>
constexpr int kResident = BOTH ? 2 : 3;
template <bool BOTH>
constexpr int kResident<Exact, BOTH> = 2;

/// Rows of a warp that there are.
__device__ int present(int64_t first, int64_t end) {
  const int64_t rows = end - first;
  return static_cast<int>(rows < 0 ? 0 : rows < kWarpRows ? rows : kWarpRows);
}

template <class Math, bool DISTILL, bool SELECT>
__global__ void __launch_bounds__(kThreads, kResident<Math, DISTILL && SELECT>) scan(Scan p) {
  using Block = Scores<Math>;
  constexpr int kRows = Block::kRows, kColumns = Block::kColumns;
  const int64_t queries = p.student.rows, blocks = (queries + kBlock - 1) / kBlock;
  // The selection needs scratch per block: there fewer blocks than blocks of work walk through all of it.
  for (int64_t work = blockIdx.x; work < p.works; work += gridDim.x) {
    const int64_t share = work % p.shares, first = work / p.shares % blocks * kBlock, group = work / p.shares / blocks;
    const int64_t begin = share * p.span, end = begin + p.span < p.bank.rows ? begin + p.span : p.bank.rows;
    const int64_t warp_first = first + warp_id() * kWarpRows;

    Stream<Math, DISTILL ? 2 : 1, 1, 1, false> stream;
    stream.plan = p.plan;
    stream.left[0] = p.student.data + group * queries * p.plan.pitch;
    if constexpr (DISTILL) stream.left[1] = p.teacher.data + group * queries * p.plan.pitch;
    stream.right[0] = p.bank.data + group * p.bank.rows * p.plan.pitch;
    stream.terms = p.bank.scale + group * p.bank.padded;
    stream.first = first;
    stream.left_end = queries;
    stream.out = 0;

    float s_scale[kRows], t_scale[kRows];
    Divergence seen[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const int64_t row = warp_first + Block::row(r);
      const bool inside = row < queries;
      s_scale[r] = inside ? p.student.scale[group * p.student.padded + row] : 0.0f;
      if constexpr (DISTILL) t_scale[r] = inside ? p.teacher.scale[group * p.teacher.padded + row] : 0.0f;
    }
    Selection<Math> selection;
    if constexpr (SELECT) {
      const typename Selection<Math>::Places places{
          (int64_t{blockIdx.x} * kBlock + warp_id() * kWarpRows) * p.capacity,
          group * p.bank.rows,
          group * queries + warp_first,
          (group * queries + warp_first) * p.shares,
      };
      selection.buffers = p.buffer;
      selection.bank_labels = p.bank_labels;
      selection.query_labels = p.query_labels;
      selection.all_floors = p.floors;
      selection.k = p.k;
      selection.limit = p.limit;
      selection.capacity = p.capacity;
      selection.start(stream.besides() + warp_id() * Selection<Math>::kShared, places, warp_first, queries);
    }

    const auto use = [&](int64_t start, Block& s, Block& t, const float* scale) {
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const float b_scale = scale[Block::column(c)];
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          s.at(r, c) = similarity(s.at(r, c), s_scale[r], b_scale);
          if constexpr (DISTILL) t.at(r, c) = similarity(t.at(r, c), t_scale[r], b_scale);
        }
      }
      if (const int rows = rows_of_tile(start, end); rows < kBlock) {  // the last tile
#pragma unroll
        for (int c = 0; c < kColumns; ++c) {
          if (Block::column(c) < rows) continue;
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
            s.at(r, c) = kLowest;
            if constexpr (DISTILL) t.at(r, c) = kLowest;
          }
        }
      }
      if constexpr (DISTILL) {
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          float s_top = seen[r].s_max, t_top = seen[r].t_max;
#pragma unroll
          for (int c = 0; c < kColumns; ++c) {
            s_top = fmaxf(s_top, s.at(r, c));
            t_top = fmaxf(t_top, t.at(r, c));
          }
          seen[r].move(s_top, t_top, p.student_factor, p.teacher_factor);
#pragma unroll
          for (int c = 0; c < kColumns; ++c) seen[r].add(s.at(r, c), t.at(r, c), p.student_factor, p.teacher_factor);
        }
      }
      if constexpr (SELECT) {
        selection.take(s, start, end);
        const unsigned tiles = static_cast<unsigned>((start - begin) / kBlock) + 1;
        if (p.floors && (tiles & (tiles - 1)) == 0) {
          const int rows = present(warp_first, queries);
          selection.exchange(static_cast<int>(share), static_cast<int>(p.shares), p.quota, rows);
        }
      }
    };
    stream.run(begin, end, use, [](Block&, Block&, const char*, const char*) {});

    if constexpr (DISTILL) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        seen[r].template merge_lanes<Block::kSharers>(p.student_factor, p.teacher_factor);
        const int64_t row = warp_first + Block::row(r);
        if (row < queries && lane_id() % Block::kSharers == 0) {
          float* place = p.statistics + share * p.total + group * queries + row;
          const int64_t step = p.shares * p.total;
          place[0] = seen[r].s_max;
          place[step] = seen[r].s_sum;
          place[2 * step] = seen[r].t_max;
          place[3 * step] = seen[r].t_sum;
          place[4 * step] = seen[r].gap;
        }
      }
    }
    if constexpr (SELECT) {
      int64_t* target = p.keys + ((group * queries + warp_first) * p.shares + share) * p.k;
      selection.finish(target, p.shares * p.k, present(warp_first, queries));
    }
  }
}

template <class Math>
int shared_of(const Plan& plan, bool select) {
  return shared_bytes(plan, 1, select ? 4 * Selection<Math>::kShared : 0);
}

template <class Math>
int run(const Scan& p, unsigned blocks, void* stream) {
  const bool distill = p.statistics, select = p.k > 0;
  auto* kernel = distill ? (select ? scan<Math, true, true> : scan<Math, true, false>) : scan<Math, false, true>;
  return launch(kernel, blocks, kThreads, shared_of<Math>(p.plan, select), stream, p);
}

Plan plan_of(int64_t pitch, bool distill) { return make_plan(pitch, distill ? 2 : 1, 1, false); }

}  // namespace
}  // namespace action

using namespace action;

/// teacher: null for a selection alone. k: 0 for none; at most `span`. tf32: float32 rows that have been rounded so.
/// floors: for several shares, all INT32_MIN; `quota` rows of each of them are enough for the whole selection.
ACTION_EXPORT int action_scan(const void* student, const float* student_scale, const void* teacher,
                              const float* teacher_scale, const void* bank, const float* bank_scale, int dtype,
                              int tf32, int64_t pitch, int64_t groups, int64_t queries, int64_t queries_padded,
                              int64_t rows, int64_t rows_padded, int64_t shares, int64_t span, float student_factor,
                              float teacher_factor, const int64_t* query_labels, const int64_t* bank_labels, int k,
                              int limit, int capacity, int quota, int64_t* buffer, int* floors, float* statistics,
                              int64_t* keys, int64_t blocks, void* stream) {
  Scan p{};
  p.plan = plan_of(pitch, teacher);
  p.student = {static_cast<const char*>(student), student_scale, queries, queries_padded};
  p.teacher = {static_cast<const char*>(teacher), teacher_scale, queries, queries_padded};
  p.bank = {static_cast<const char*>(bank), bank_scale, rows, rows_padded};
  p.statistics = statistics;
  p.query_labels = query_labels;
  p.bank_labels = bank_labels;
  p.keys = keys;
  p.buffer = buffer;
  p.floors = floors;
  p.shares = shares;
  p.span = span;
  p.works = groups * ((queries + kBlock - 1) / kBlock) * shares;
  p.total = groups * queries;
  p.student_factor = student_factor;
  p.teacher_factor = teacher_factor;
  p.k = k;
  p.limit = limit;
  p.capacity = capacity;
  p.quota = quota;
  const unsigned count = static_cast<unsigned>(blocks);
  if (dtype == kFloat16) return run<Half>(p, count, stream);
  if (dtype == kBfloat16) return run<Bfloat>(p, count, stream);
  return tf32 ? run<Tf32>(p, count, stream) : run<Exact>(p, count, stream);
}

/// Bytes of shared memory that a block of the scan gets.
ACTION_EXPORT int action_scan_shared(int dtype, int tf32, int64_t pitch, int distill, int select) {
  const Plan plan = plan_of(pitch, distill);
  if (dtype == kFloat16) return shared_of<Half>(plan, select);
  if (dtype == kBfloat16) return shared_of<Bfloat>(plan, select);
  return tf32 ? shared_of<Tf32>(plan, select) : shared_of<Exact>(plan, select);
}
