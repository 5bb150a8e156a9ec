// The distillation's gradient in the bank: the forward sweep turned round.
//
// Here the panels are bank rows and the queries stream by, so that every bank row's sum has one owner and one order.
// The bank's scale multiplies the finished product, as in the forward sweep: scores must be the very same numbers that
// the log-sum-exps were made of, or a sharp softmax would be off by one rounding / temperature.
#include <algorithm>

#include "chunks.h"
#include "kernels.h"
#include "parallel.h"
#include "subnormals.h"
#include "tile.h"

namespace action::ACTION_ISA {
namespace {

template <int NV>
class BankGradientPass {
 public:
  BankGradientPass(const BankGradient& args, Resources resources)
      : a(args),
        groups(a.shape.groups),
        queries(a.shape.queries),
        rows(a.shape.rows),
        features(a.shape.features),
        tile_(tile_rows(features, queries)) {
    threads_ = useful_threads(resources.threads, 4.0 * groups * queries * rows * features);
    chunks_ = Chunks(groups, (rows + L - 1) / L, threads_, resources.scratch, [this](int64_t p) { return floats(p); });
  }

  void run() {
    Scratch scratch(threads_, floats(chunks_.panels));
    const Inverses student_inverse(a.student, groups, queries, features, a.normalize, threads_);
    const Inverses teacher_inverse(a.teacher, groups, queries, features, a.normalize, threads_);
#pragma omp parallel for schedule(dynamic) num_threads(threads_)
    for (int64_t item = 0; item < chunks_.count; ++item) {
      const int64_t group = item / chunks_.per_group, first = item % chunks_.per_group * chunks_.panels * L;
      chunk(group, first, student_inverse.group(group), teacher_inverse.group(group),
            scratch.thread(thread_number()));
    }
  }

 private:
  static constexpr int L = kLanes<NV>;

  int64_t floats(int64_t panels) const {
    return panels * (2 * Cutter::size<float>(features * L) + Cutter::size<float>(L)) + Cutter::size<float>(features) +
           2 * Cutter::size<float>(tile_ * features) + 2 * Cutter::size<float>(packed_floats(tile_, features)) +
           Cutter::size<float>(tile_ * 2 * L);
  }

  void chunk(int64_t group, int64_t first, const float* student_inverse, const float* teacher_inverse,
             float* memory) const {
    const FlushSubnormals flush;
    const Rows student = group_rows(a.student, group, features), teacher = group_rows(a.teacher, group, features);
    const Rows bank = group_rows(a.bank, group, features);
    const int64_t panels = std::min(chunks_.panels, (rows - first + L - 1) / L);
    const int64_t size = Cutter::size<float>(features * L);
    Cutter cut(memory);
    float* row = cut.take(features);
    float *s = cut.take(tile_ * features), *t = cut.take(tile_ * features);
    float* student_packed = cut.take(packed_floats(tile_, features));
    float* teacher_packed = cut.take(packed_floats(tile_, features));
    float* tile = cut.take(tile_ * 2 * L);
    float* inverse = cut.take(panels * L);
    float *panel = cut.take(panels * size), *gradient = cut.take(panels * size);
    std::memset(gradient, 0, sizeof(float) * panels * size);
    auto members = [&](int64_t p) { return std::min<int64_t>(L, rows - first - p * L); };
    for (int64_t p = 0; p < panels; ++p)
      pack_panel<NV>(bank, first + p * L, members(p), a.normalize, false, row, panel + p * size, inverse + p * L);

    for (int64_t i = 0; i < queries; i += tile_) {
      const int64_t count = std::min(tile_, queries - i);
      open_stream(student, i, count, student_inverse, s);
      open_stream(teacher, i, count, teacher_inverse, t);
      pack_features(s, count, features, student_packed);
      pack_features(t, count, features, teacher_packed);
      for (int64_t p = 0; p < panels; ++p) {
        score<NV>(s, count, panel + p * size, features, nullptr, tile, 2 * L);
        score<NV>(t, count, panel + p * size, features, nullptr, tile + L, 2 * L);
        weights(tile, group * queries + i, count, inverse + p * L);
        accumulate<NV>(student_packed, count, tile, 2 * L, features, gradient + p * size);
        accumulate<NV>(teacher_packed, count, tile + L, 2 * L, features, gradient + p * size);
      }
    }
    for (int64_t p = 0; p < panels; ++p) {
      float* unit = panel + p * size;
      for (int64_t d = 0; d < features; ++d)
        for (int lane = 0; lane < L; ++lane) unit[d * L + lane] *= inverse[p * L + lane];
      unpack_gradient<NV>(gradient + p * size, unit, inverse + p * L, a.normalize, features, first + p * L, members(p),
                          a.grad_bank + group * rows * features);
    }
  }

  // Scores become weights: (p_s - p_t) / student_temp and p_t (log p_t - log p_s - kl) / teacher_temp, times the
  // query's upstream gradient.
  void weights(float* tile, int64_t first, int64_t count, const float* inverse) const {
    const vf cs = set1(static_cast<float>(kLog2e / a.student_temp));
    const vf ct = set1(static_cast<float>(kLog2e / a.teacher_temp));
    for (int64_t i = 0; i < count; ++i) {
      const float g = a.grad_kl[first + i], kl = a.kl[first + i];
      const Reference rs(a.student_lse[first + i], a.student_temp), rt(a.teacher_lse[first + i], a.teacher_temp);
      const vf ws = set1(g / static_cast<float>(a.student_temp)), wt = set1(g / static_cast<float>(a.teacher_temp));
      float* row = tile + i * 2 * L;
      for (int v = 0; v < NV; ++v) {
        const vf unit = load(inverse + v * kWidth);
        const vf s = (rounded(load(row + v * kWidth) * unit) - set1(rs.score)) * cs + set1(rs.rest);
        const vf t = (rounded(load(row + L + v * kWidth) * unit) - set1(rt.score)) * ct + set1(rt.rest);
        const vf ps = exp2(s), pt = exp2(t);
        store(row + v * kWidth, (ps - pt) * ws);
        store(row + L + v * kWidth, pt * ((t - s) * set1(static_cast<float>(kLn2)) - set1(kl)) * wt);
      }
    }
  }

  const BankGradient& a;
  const int64_t groups, queries, rows, features, tile_;
  Chunks chunks_;
  int threads_;
};

}  // namespace

void bank_gradient(const BankGradient& args, Resources resources) {
  if (args.shape.rows <= kWidth)
    BankGradientPass<1>(args, resources).run();
  else
    BankGradientPass<2>(args, resources).run();
}

}  // namespace action::ACTION_ISA
