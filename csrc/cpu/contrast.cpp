// action_contrast and hard_negatives: one sweep over the bank for each panel of queries.
//
// A panel's lanes are queries; the bank streams by in tiles. A tile of scores is used while it lies in the cache: the
// selection takes what beats its threshold, then the online softmaxes turn scores into exponentials relative to the
// running maxima. When a row's sums are known, exponentials become gradient weights and flow back through the bank.
// Exponentials are kept between the two sweeps where the scratch limit allows (3 products in all), and recomputed where
// the bank is too long for that (5 products).
#include <algorithm>
#include <cmath>

#include "chunks.h"
#include "kernels.h"
#include "parallel.h"
#include "selection.h"
#include "softmax.h"

namespace action::ACTION_ISA {
namespace {

bool labels_fit(const int64_t* labels, int64_t count) {
  int64_t outside = 0;
  if (labels)
    for (int64_t i = 0; i < count; ++i) outside |= labels[i] ^ static_cast<int32_t>(labels[i]);
  return outside == 0;
}

template <int NV>
class ContrastPass {
 public:
  ContrastPass(const Contrast& args, Resources resources)
      : a(args),
        groups(a.shape.groups),
        queries(a.shape.queries),
        rows(a.shape.rows),
        features(a.shape.features),
        distil_(a.teacher.data != nullptr),
        keep_(distil_ && a.direction),
        width_(distil_ ? 2 * L : L),
        entries_(a.k > 0 ? Selection<NV>::entries(a.k, rows) : 0),
        tile_(tile_rows(features, rows)),
        tiles_((rows + tile_ - 1) / tile_),
        scales_{static_cast<float>(kLog2e / a.student_temp), static_cast<float>(kLog2e / a.teacher_temp)} {
    labels_fit_ = a.k > 0 && labels_fit(a.query_labels, groups * queries) && labels_fit(a.bank_labels, groups * rows);
    threads_ = useful_threads(resources.threads, 3.0 * groups * queries * rows * features);
    if (keep_ && floats(1) > resources.scratch / 4 / threads_) keep_ = false;
    chunks_ = Chunks(groups, (queries + L - 1) / L, threads_, resources.scratch, [this](int64_t p) { return floats(p); });
  }

  void run() {
    Scratch scratch(threads_, floats(chunks_.panels));
    const Inverses inverse(a.bank, a.shape.groups, rows, features, a.normalize, threads_);
#pragma omp parallel for schedule(dynamic) num_threads(threads_)
    for (int64_t item = 0; item < chunks_.count; ++item) {
      const int64_t group = item / chunks_.per_group, first = item % chunks_.per_group * chunks_.panels * L;
      chunk(group, first, inverse.group(group), scratch.thread(thread_number()));
    }
  }

 private:
  static constexpr int L = kLanes<NV>;

  struct Panel {
    int64_t first, count;  // queries
    float *student, *student_inverse, *teacher, *teacher_inverse;
    Softmax<NV>* softmax;
    Selection<NV>* selection;
    float* kept;       // exponentials of all bank rows [M][width]
    float* maxima;     // what they are relative to, by tile (or of the last tile only)
    float* direction;  // [D][L]
  };

  // Scratch of a thread for a chunk of `panels` panels: what chunk() takes.
  int64_t floats(int64_t panels) const {
    int64_t panel = Cutter::size<float>(features * L) + Cutter::size<float>(L);
    if (distil_)
      panel += Cutter::size<float>(features * L) + Cutter::size<float>(L) + Cutter::size<Softmax<NV>>(1) +
               Cutter::size<float>(maxima());
    if (keep_) panel += Cutter::size<float>(rows * width_);
    if (a.direction) panel += Cutter::size<float>(features * L);
    if (a.k > 0) panel += Cutter::size<Selection<NV>>(1) + Cutter::size<int32_t>(2 * L * entries_);
    int64_t shared = Cutter::size<Panel>(panels) + Cutter::size<float>(features) +
                     Cutter::size<float>(tile_ * features) + Cutter::size<float>(tile_ * width_);
    if (a.direction) shared += Cutter::size<float>(packed_floats(tile_, features));
    return panels * panel + shared;
  }

  int64_t maxima() const { return 2 * L * (keep_ ? tiles_ : 1); }

  void chunk(int64_t group, int64_t first, const float* scale, float* memory) const {
    const Rows bank = group_rows(a.bank, group, features);
    const BankLabels labels{a.bank_labels ? a.bank_labels + group * rows : nullptr, labels_fit_};
    const int64_t panels = std::min(chunks_.panels, (queries - first + L - 1) / L);
    Cutter cut(memory);
    Panel* panel = cut.take<Panel>(panels);
    float* row = cut.take(features);
    float* stream = cut.take(tile_ * features);
    float* loose = cut.take(tile_ * width_);
    for (int64_t p = 0; p < panels; ++p) open(panel[p], group, first + p * L, cut, row);

    for (int64_t t = 0; t < tiles_; ++t) {
      const int64_t j = t * tile_, count = std::min(tile_, rows - j);
      open_stream(bank, j, count, nullptr, stream);
      for (int64_t p = 0; p < panels; ++p) {
        const Panel& q = panel[p];
        float* tile = keep_ ? q.kept + j * width_ : loose;
        score_tile(q, stream, count, scale ? scale + j : nullptr, tile);
        if (a.k > 0) q.selection->take(tile, width_, j, count, labels);
        if (distil_) softmax_tile<NV>(tile, count, scales_, t == 0, *q.softmax, q.maxima + (keep_ ? t * 2 * L : 0));
      }
    }
    for (int64_t p = 0; p < panels; ++p) write_rows(panel[p], group);
    if (a.direction) direction(group, panel, panels, bank, scale, stream, loose, cut);
  }

  void direction(int64_t group, const Panel* panel, int64_t panels, const Rows& bank, const float* scale,
                 float* stream, float* loose, Cutter cut) const {
    float* packed = cut.take(packed_floats(tile_, features));
    for (int64_t p = 0; p < panels; ++p) std::memset(panel[p].direction, 0, sizeof(float) * features * L);
    for (int64_t t = 0; t < tiles_; ++t) {
      const int64_t j = t * tile_, count = std::min(tile_, rows - j);
      open_stream(bank, j, count, nullptr, stream);
      const float* row_scale = scale ? scale + j : nullptr;
      pack_features(stream, count, features, packed);
      for (int64_t p = 0; p < panels; ++p) {
        const Panel& q = panel[p];
        float* tile = keep_ ? q.kept + j * width_ : loose;
        const float* maxima = q.maxima + (keep_ ? t * 2 * L : 0);  // those of the last tile are the final ones
        if (!keep_) {
          score_tile(q, stream, count, row_scale, tile);
          exponential_tile<NV>(tile, count, scales_, maxima);
        }
        weight_tile<NV>(tile, count, scales_, maxima, *q.softmax, static_cast<float>(a.student_temp), row_scale);
        accumulate<NV>(packed, count, tile, width_, features, q.direction);
      }
    }
    for (int64_t p = 0; p < panels; ++p) {
      const Panel& q = panel[p];
      unpack_gradient<NV>(q.direction, q.student, q.student_inverse, a.normalize, features, q.first, q.count,
                          a.direction + group * queries * features);
    }
  }

  void open(Panel& q, int64_t group, int64_t first, Cutter& cut, float* row) const {
    q.first = first;
    q.count = std::min<int64_t>(L, queries - first);
    q.student = cut.take(features * L);
    q.student_inverse = cut.take(L);
    pack_panel<NV>(group_rows(a.student, group, features), first, q.count, a.normalize, a.normalize, row, q.student,
                   q.student_inverse);
    if (distil_) {
      q.teacher = cut.take(features * L);
      q.teacher_inverse = cut.take(L);
      pack_panel<NV>(group_rows(a.teacher, group, features), first, q.count, a.normalize, a.normalize, row, q.teacher,
                     q.teacher_inverse);
      q.softmax = cut.take<Softmax<NV>>(1);
      q.maxima = cut.take(maxima());
    }
    if (keep_) q.kept = cut.take(rows * width_);
    if (a.direction) q.direction = cut.take(features * L);
    if (a.k > 0) {
      q.selection = cut.take<Selection<NV>>(1);
      q.selection->start(cut.take<int32_t>(2 * L * entries_), entries_, a.k,
                         a.query_labels ? a.query_labels + group * queries + first : nullptr, q.count);
    }
  }

  void score_tile(const Panel& q, const float* stream, int64_t count, const float* row_scale, float* tile) const {
    score<NV>(stream, count, q.student, features, row_scale, tile, width_);
    if (distil_) score<NV>(stream, count, q.teacher, features, row_scale, tile + L, width_);
  }

  void write_rows(const Panel& q, int64_t group) const {
    const int64_t start = group * queries + q.first;
    for (int64_t lane = 0; lane < q.count; ++lane) {
      const int64_t out = start + lane;
      if (distil_) {
        auto value = [lane](const vf* v) { return static_cast<double>(v[lane / kWidth][lane % kWidth]); };
        const double student_sum = value(q.softmax->student_sum), teacher_sum = value(q.softmax->teacher_sum);
        const double student_log = std::log(student_sum), teacher_log = std::log(teacher_sum);
        const double divergence = kLn2 * value(q.softmax->divergence) / teacher_sum;
        a.kl[out] = static_cast<float>(divergence + student_log - teacher_log);
        a.student_lse[out] = value(q.softmax->student_max) / a.student_temp + student_log;
        a.teacher_lse[out] = value(q.softmax->teacher_max) / a.teacher_temp + teacher_log;
      }
      if (a.k > 0) q.selection->finish(static_cast<int>(lane), a.similarity + out * a.k, a.index + out * a.k);
    }
  }

  const Contrast& a;
  const int64_t groups, queries, rows, features;
  const bool distil_;
  bool keep_, labels_fit_;
  const int64_t width_;    // floats of one bank row's scores: a panel of students, and one of teachers
  const int64_t entries_;  // of a selection buffer
  const int64_t tile_, tiles_;
  const Scales scales_;
  Chunks chunks_;
  int threads_;
};

}  // namespace

// A panel of one vector wastes less where one vector holds every query.
void contrast(const Contrast& args, Resources resources) {
  if (args.shape.queries <= kWidth)
    ContrastPass<1>(args, resources).run();
  else
    ContrastPass<2>(args, resources).run();
}

}  // namespace action::ACTION_ISA
