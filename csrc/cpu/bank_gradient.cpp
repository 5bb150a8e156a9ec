// The gradient in the bank of action_contrast's divergence or of log_sum_exp: the forward sweep with the roles
// exchanged.
//
// Here the panels are bank rows and the queries (SIDES of them: student and teacher, or one) are streamed, so that
// every bank row's sum has one owner and one order. The bank's scale multiplies the finished product, as in the forward
// sweep: scores must be exactly the numbers that the log-sum-exps were computed from, or a sharp softmax would be off
// by one rounding / temperature.
#include <algorithm>

#include "bank_gradient.h"
#include "chunks.h"
#include "subnormals.h"
#include "tile.h"

namespace action::ACTION_ISA {
namespace {

template <int NV, int SIDES>
class Pass {
 public:
  Pass(const BankGradient& args, Resources resources)
      : a(args),
        groups(a.shape.groups),
        queries(a.shape.queries),
        rows(a.shape.rows),
        features(a.shape.features),
        tile_(tile_rows(features, queries)) {
    threads_ = useful_threads(resources.threads, 2.0 * SIDES * groups * queries * rows * features);
    chunks_ =
        Chunks(groups, (rows + L - 1) / L, threads_, resources.scratch_bytes, [this](int64_t p) { return floats(p); });
  }

  void run() {
    Scratch scratch(threads_, floats(chunks_.panels));
    const Inverses student_inverse(a.student, a.normalize, threads_);
    const Inverses teacher_inverse(kPair ? a.teacher : a.student, kPair && a.normalize, threads_);
#pragma omp parallel for schedule(dynamic) num_threads(threads_)
    for (int64_t item = 0; item < chunks_.count; ++item) {
      const int64_t group = item / chunks_.per_group, first = item % chunks_.per_group * chunks_.panels * L;
      chunk(group, first, student_inverse.group(group), teacher_inverse.group(group), scratch.thread(thread_number()));
    }
  }

 private:
  static constexpr int L = kLanes<NV>;
  static constexpr bool kPair = SIDES == 2;
  static constexpr int64_t kWide = SIDES * L;  // floats of one query's scores

  // A thread's scratch for that many panels.
  struct Buffers {
    float* row;                              // [D]
    float *student, *teacher;                // a tile's rows; the teacher's where there is one, as the next
    float *student_packed, *teacher_packed;  // and the same as features
    float* tile;                             // its scores
    float* inverse;                          // [panels][L] 1 / norm of the bank's rows
    float *panel, *gradient;                 // [panels][panel_floats()], of which [D][L] are used
  };

  int64_t panel_floats() const { return (features * L + 15) / 16 * 16; }  // aligned to a cache line

  Buffers lay_out(int64_t panels, Cutter& cut) const {
    Buffers b;
    b.row = cut.take(features);
    b.student = cut.take(tile_ * features);
    b.teacher = kPair ? cut.take(tile_ * features) : nullptr;
    b.student_packed = cut.take(packed_floats(tile_, features));
    b.teacher_packed = kPair ? cut.take(packed_floats(tile_, features)) : nullptr;
    b.tile = cut.take(tile_ * kWide);
    b.inverse = cut.take(panels * L);
    b.panel = cut.take(panels * panel_floats());
    b.gradient = cut.take(panels * panel_floats());
    return b;
  }

  int64_t floats(int64_t panels) const {
    Cutter measure;
    lay_out(panels, measure);
    return measure.used();
  }

  void chunk(int64_t group, int64_t first, const float* student_inverse, const float* teacher_inverse,
             float* memory) const {
    const FlushSubnormals flush;
    const Rows student = group_rows(a.student, group), bank = group_rows(a.bank, group);
    const int64_t panels = std::min(chunks_.panels, (rows - first + L - 1) / L);
    const int64_t size = panel_floats();
    Cutter cut(memory);
    const auto [row, s, t, student_packed, teacher_packed, tile, inverse, panel, gradient] = lay_out(panels, cut);
    std::memset(gradient, 0, sizeof(float) * panels * size);
    auto members = [&](int64_t p) { return std::min<int64_t>(L, rows - first - p * L); };
    for (int64_t p = 0; p < panels; ++p)
      pack_panel<NV>(bank, first + p * L, members(p), a.normalize, false, row, panel + p * size, inverse + p * L);

    for (int64_t i = 0; i < queries; i += tile_) {
      const int64_t count = std::min(tile_, queries - i);
      open_stream(student, i, count, student_inverse, s);
      pack_features(s, count, features, student_packed);
      if constexpr (kPair) {
        open_stream(group_rows(a.teacher, group), i, count, teacher_inverse, t);
        pack_features(t, count, features, teacher_packed);
      }
      for (int64_t p = 0; p < panels; ++p) {
        score<NV>(s, count, panel + p * size, features, nullptr, tile, kWide);
        if constexpr (kPair) score<NV>(t, count, panel + p * size, features, nullptr, tile + L, kWide);
        weights(tile, group * queries + i, count, inverse + p * L);
        accumulate<NV>(student_packed, count, tile, kWide, features, gradient + p * size);
        if constexpr (kPair) accumulate<NV>(teacher_packed, count, tile + L, kWide, features, gradient + p * size);
      }
    }
    for (int64_t p = 0; p < panels; ++p) {
      float* unit = panel + p * size;
      for (int64_t d = 0; d < features; ++d)
        for (int lane = 0; lane < L; ++lane) unit[d * L + lane] *= inverse[p * L + lane];
      unpack_gradient<NV>(gradient + p * size, unit, inverse + p * L, a.normalize, features, first + p * L, members(p),
                          a.bank_grad + group * rows * features);
    }
  }

  // Scores become weights, times the query's upstream gradient: p / student_temp where there is no teacher, else
  // (p_s - p_t) / student_temp and p_t (t - s - logit_gap) / teacher_temp with the logits t and s. The gap is taken
  // apart like a log-sum-exp: t - s - gap is (t less the teacher's reference) less (s less the student's score of that
  // reference), and neither rounds anything large.
  void weights(float* tile, int64_t first, int64_t count, const float* inverse) const {
    const vf cs = set1(static_cast<float>(kLog2e / a.student_temp));
    [[maybe_unused]] const vf ct = set1(static_cast<float>(kLog2e / a.teacher_temp));
    for (int64_t i = 0; i < count; ++i) {
      const float g = a.upstream[first + i];
      const Reference rs(a.student_lse[first + i], a.student_temp);
      const vf ws = set1(g / static_cast<float>(a.student_temp));
      float* row = tile + i * kWide;
      const auto score_of = [&](int v) { return rounded(load(row + v * kWidth) * load(inverse + v % NV * kWidth)); };
      if constexpr (kPair) {
        const Reference rt(a.teacher_lse[first + i], a.teacher_temp);
        const Reference middle(rt.score / a.teacher_temp - a.logit_gap[first + i], a.student_temp);
        const vf wt = set1(g / static_cast<float>(a.teacher_temp) * static_cast<float>(kLn2));
        for (int v = 0; v < NV; ++v) {
          const vf score = score_of(v);
          const vf t = (score_of(NV + v) - set1(rt.score)) * ct;
          const vf ps = exp2((score - set1(rs.score)) * cs + set1(rs.rest)), pt = exp2(t + set1(rt.rest));
          const vf beyond = t - ((score - set1(middle.score)) * cs + set1(middle.rest));
          store(row + v * kWidth, (ps - pt) * ws);
          store(row + L + v * kWidth, pt * beyond * wt);
        }
      } else {
        for (int v = 0; v < NV; ++v)
          store(row + v * kWidth, exp2((score_of(v) - set1(rs.score)) * cs + set1(rs.rest)) * ws);
      }
    }
  }

  const BankGradient& a;
  const int64_t groups, queries, rows, features, tile_;
  Chunks chunks_;
  int threads_;
};

template <int SIDES>
void pass(const BankGradient& args, Resources resources) {
  if (args.shape.rows <= kWidth)
    Pass<1, SIDES>(args, resources).run();
  else
    Pass<2, SIDES>(args, resources).run();
}

}  // namespace

void bank_gradient(const BankGradient& args, Resources resources) {
  if (args.teacher.given())
    pass<2>(args, resources);
  else
    pass<1>(args, resources);
}

}  // namespace action::ACTION_ISA
