// One pass over the bank: both softmaxes' sums, the divergence between them, and the candidates for the selection.
//
// A block keeps 64 queries and walks through its split of the bank. Similarities stay in registers; every thread
// keeps its own maxima over the columns that it holds, so that nothing is exchanged before the end of the walk.
// Splits are merged afterwards (statistics.cu), so that few queries against a long bank still fill a GPU.
#include "launch.cuh"
#include "library.cuh"
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

struct Pass {
  Plan plan;
  Side student, teacher, bank;
  float* statistics;            // [6, num_splits, G, N]
  const int64_t* query_labels;  // [G, N], or null
  const int64_t* bank_labels;   // [G, M]
  int64_t* keys;                // [G, N, num_splits, k]
  int64_t* buffer;              // [blocks, 64, capacity]
  int* floors;                  // [G, N, num_splits], or null
  int64_t works, num_splits, span, total;
  float student_factor, teacher_factor;
  int k, limit, capacity, quota;
};

/// Blocks that a multiprocessor's registers have room for: two with exact products, or with everything at once.
template <class Math, bool BOTH>
constexpr int kResident = BOTH ? 2 : 3;
template <bool BOTH>
constexpr int kResident<Exact, BOTH> = 2;

/// How many of a warp's rows exist.
__device__ int present(int64_t first, int64_t end) {
  const int64_t rows = end - first;
  return static_cast<int>(rows < 0 ? 0 : rows < kWarpRows ? rows : kWarpRows);
}

template <class Math, bool DISTILL, bool SELECT>
__global__ void __launch_bounds__(kThreads, kResident<Math, DISTILL && SELECT>) bank_pass(Pass p) {
  using Block = Scores<Math>;
  constexpr int kRows = Block::kRows, kColumns = Block::kColumns;
  const int64_t queries = p.student.rows, blocks = (queries + kBlock - 1) / kBlock;
  // The selection needs scratch per block, so a limited number of blocks takes all the pieces of work in turn.
  for (int64_t work = blockIdx.x; work < p.works; work += gridDim.x) {
    const int64_t split = work % p.num_splits, tile = work / p.num_splits;
    const int64_t first = tile % blocks * kBlock, group = tile / blocks;
    const int64_t begin = split * p.span, end = begin + p.span < p.bank.rows ? begin + p.span : p.bank.rows;
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
          (group * queries + warp_first) * p.num_splits,
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
      if constexpr (SELECT) {
        selection.take(s, start, end);
        const unsigned tiles = static_cast<unsigned>((start - begin) / kBlock) + 1;
        if (p.floors && (tiles & (tiles - 1)) == 0) {
          const int rows = present(warp_first, queries);
          selection.exchange(static_cast<int>(split), static_cast<int>(p.num_splits), p.quota, rows);
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
          float* place = p.statistics + split * p.total + group * queries + row;
          const int64_t step = p.num_splits * p.total;
          place[0] = seen[r].s_max;
          place[step] = seen[r].s_sum;
          place[2 * step] = seen[r].t_max;
          place[3 * step] = seen[r].t_sum;
          place[4 * step] = seen[r].gap;
          place[5 * step] = seen[r].s_there;
        }
      }
    }
    if constexpr (SELECT) {
      int64_t* target = p.keys + ((group * queries + warp_first) * p.num_splits + split) * p.k;
      selection.finish(target, p.num_splits * p.k, present(warp_first, queries));
    }
  }
}

template <class Math>
int shared_of(const Plan& plan, bool select) {
  return shared_bytes(plan, 1, select ? 4 * Selection<Math>::kShared : 0);
}

template <class Math>
int32_t run(const Pass& p, unsigned blocks, void* stream) {
  const bool distill = p.statistics, select = p.k > 0;
  auto* kernel = bank_pass<Math, false, true>;
  if (distill) kernel = select ? bank_pass<Math, true, true> : bank_pass<Math, true, false>;
  return enqueue(kernel, blocks, kThreads, shared_of<Math>(p.plan, select), stream, p);
}

Plan plan_of(int64_t pitch, bool distill) { return make_plan(pitch, distill ? 2 : 1, 1, false); }

#define BANK_PASS_FIELDS(FIELD)                                                                    \
  FIELD(Tensor, student)       /* [G, N, padded D] prepared rows */                                \
  FIELD(Tensor, student_scale) /* [G, N padded to whole tiles] float32 */                          \
  FIELD(Tensor, teacher)       /* [G, N, padded D], or none: a selection alone */                  \
  FIELD(Tensor, teacher_scale) /* [G, N padded] float32, or none */                                \
  FIELD(Tensor, bank)          /* [G, M, padded D] */                                              \
  FIELD(Tensor, bank_scale)    /* [G, M padded] float32 */                                         \
  FIELD(bool, tf32)            /* float32 rows have been rounded to it */                          \
  FIELD(int64_t, num_splits)   /* of the bank */                                                   \
  FIELD(int64_t, span)         /* bank rows of a split */                                          \
  FIELD(double, student_temp)                                                                      \
  FIELD(double, teacher_temp)                                                                      \
  FIELD(Tensor, query_labels) /* [G, N] int64, or none */                                          \
  FIELD(Tensor, bank_labels)  /* [G, M] int64, or none */                                          \
  FIELD(int64_t, kept)        /* candidates of a split; 0: no selection */                         \
  FIELD(int64_t, limit)       /* of what a clearing may leave in a buffer */                       \
  FIELD(int64_t, quota)       /* this many candidates of every split are enough altogether */      \
  FIELD(Tensor, buffer)       /* [blocks, 64, capacity] int64, or none */                          \
  FIELD(Tensor, floors)       /* [G, N, num_splits] int32, all the lowest; or none */              \
  FIELD(Tensor, statistics)   /* [6, num_splits, G, N] float32, a result like the next; or none */ \
  FIELD(Tensor, keys)         /* [G, N, num_splits kept] int64 */
ACTION_PARAMS(BankPassParams, BANK_PASS_FIELDS)

int32_t bank_pass_launcher(const BankPassParams& p, void* stream) {
  Checks check(kDevice, p.student);
  const int64_t g = check.size(p.student, "student", 0, 3), n = check.size(p.student, "student", 1, 3);
  const int64_t width = check.size(p.student, "student", 2, 3), m = check.size(p.bank, "bank", 1, 3);
  const int64_t n_padded = check.size(p.student_scale, "student_scale", 1, 2);
  const int64_t m_padded = check.size(p.bank_scale, "bank_scale", 1, 2);
  const Dtype dtype = p.student.dtype;
  check.rows(p.student, "student", {g, n, width});
  Pass call{};
  call.plan = plan_of(width * (dtype == Dtype::float32 ? 4 : 2), p.teacher.given());
  const auto side = [&](const Tensor& x, const char* name, const Tensor& scale, const char* scale_name, int64_t rows,
                        int64_t padded) {
    return Side{streamed_rows(check, x, name, dtype, {g, rows, width}),
                streamed_terms(check, scale, scale_name, rows, {g, padded}), rows, padded};
  };
  call.student = side(p.student, "student", p.student_scale, "student_scale", n, n_padded);
  if (p.teacher.given()) call.teacher = side(p.teacher, "teacher", p.teacher_scale, "teacher_scale", n, n_padded);
  call.bank = side(p.bank, "bank", p.bank_scale, "bank_scale", m, m_padded);
  check_splits(check, p.num_splits, p.span, m);
  check.require(p.teacher.given() || p.kept > 0, "there must be a teacher, a selection, or both");
  const int64_t works = g * ((n + kBlock - 1) / kBlock) * p.num_splits;
  int64_t blocks = works, capacity = 0;
  if (p.teacher.given()) call.statistics = check.contiguous<float>(p.statistics, "statistics", {6, p.num_splits, g, n});
  if (p.kept > 0) {
    blocks = check.size(p.buffer, "buffer", 0, 3);
    capacity = check.size(p.buffer, "buffer", 2, 3);
    call.buffer = check.contiguous<int64_t>(p.buffer, "buffer", {blocks, kBlock, capacity});
    call.floors = check.optional<int32_t>(p.floors, "floors", {g, n, p.num_splits});
    call.keys = check.contiguous<int64_t>(p.keys, "keys", {g, n, p.num_splits * p.kept});
    check.require(p.kept <= p.span && p.kept <= p.limit && p.limit + kBlock <= capacity && p.quota > 0,
                  "kept, limit and quota must fit the span, the buffer and each other");
    if (p.query_labels.given() || p.bank_labels.given()) {
      call.query_labels = check.contiguous<int64_t>(p.query_labels, "query_labels", {g, n});
      call.bank_labels = check.contiguous<int64_t>(p.bank_labels, "bank_labels", {g, m});
    }
  }
  call.num_splits = p.num_splits;
  call.span = p.span;
  call.works = works;
  call.total = g * n;
  call.student_factor = static_cast<float>(kLog2e / p.student_temp);
  call.teacher_factor = static_cast<float>(kLog2e / p.teacher_temp);
  call.k = static_cast<int>(p.kept);
  call.limit = static_cast<int>(p.limit);
  call.capacity = static_cast<int>(capacity);
  call.quota = static_cast<int>(p.quota);
  if (!check.passed()) return check.status();
  const unsigned count = static_cast<unsigned>(blocks);
  if (dtype == Dtype::float16) return run<Half>(call, count, stream);
  if (dtype == Dtype::bfloat16) return run<Bfloat>(call, count, stream);
  return p.tf32 ? run<Tf32>(call, count, stream) : run<Exact>(call, count, stream);
}

}  // namespace

const Launcher kBankPass{"bank_pass", untyped<BankPassParams, bank_pass_launcher>, ACTION_LAYOUT(BankPassParams)};

}  // namespace action

using namespace action;

/// Bytes of shared memory that a block of the pass gets.
ACTION_EXPORT int action_bank_pass_shared(int dtype, int tf32, int64_t pitch, int distill, int select) {
  const Plan plan = plan_of(pitch, distill);
  if (static_cast<Dtype>(dtype) == Dtype::float16) return shared_of<Half>(plan, select);
  if (static_cast<Dtype>(dtype) == Dtype::bfloat16) return shared_of<Bfloat>(plan, select);
  return tf32 ? shared_of<Tf32>(plan, select) : shared_of<Exact>(plan, select);
}
