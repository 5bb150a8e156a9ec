// One sweep over the bank for each panel of queries.
//
// A panel's lanes are queries; the bank is streamed in tiles. A tile of scores is used while it is in the cache: the
// selection takes what beats its threshold, then the online softmaxes (SIDES of them: student and teacher, or one, or
// none) turn scores into exponentials relative to the running maxima. When a row's sums are known, exponentials become
// gradient weights and flow back through the bank.
// Where there are fewer panels than threads, each thread sweeps a part of the bank, and the parts are merged.
// Exponentials are kept between the two sweeps where the scratch limit allows (3 products in all), and recomputed where
// the bank is too long for that (5 products). Where the log-sum-exps are given, there is the second sweep alone.
#include <algorithm>
#include <cmath>
#include <memory>

#include "bank_pass.h"
#include "chunks.h"
#include "selection.h"
#include "softmax.h"
#include "subnormals.h"

namespace action::ACTION_ISA {
namespace {

bool labels_fit(const int64_t* labels, int64_t count) {
  int64_t outside = 0;
  if (labels)
    for (int64_t i = 0; i < count; ++i) outside |= labels[i] ^ static_cast<int32_t>(labels[i]);
  return outside == 0;
}

template <int NV, int SIDES>
class Pass {
 public:
  Pass(const BankPass& args, Resources resources)
      : a(args),
        groups(a.shape.groups),
        queries(a.shape.queries),
        rows(a.shape.rows),
        features(a.shape.features),
        keep_(SIDES > 0 && a.student_grad && !a.lses_given),
        entries_(a.k > 0 ? Selection<NV>::entries(a.k, rows) : 0),
        tile_(tile_rows(features, rows)),
        tiles_((rows + tile_ - 1) / tile_),
        scales_{static_cast<float>(kLog2e / a.student_temp), static_cast<float>(kLog2e / a.teacher_temp)} {
    labels_fit_ = a.k > 0 && labels_fit(a.query_labels, groups * queries) && labels_fit(a.bank_labels, groups * rows);
    threads_ = useful_threads(resources.threads, 3.0 * groups * queries * rows * features);
    const int64_t panels = (queries + L - 1) / L;
    const int64_t parts = groups * panels < threads_ ? std::min<int64_t>(threads_, tiles_) : 1;
    part_tiles_ = (tiles_ + parts - 1) / parts;
    parts_ = (tiles_ + part_tiles_ - 1) / part_tiles_;
    // Looking ahead saves little where the bank is short, and finds no bound where it sees hardly more than k rows.
    ahead_ = a.k > 0 && tile_ * kAhead >= 3 * a.k && part_tiles_ >= 2 * kAhead ? kAhead : 0;
    if (keep_ && floats(1) > resources.scratch_bytes / 4 / threads_) keep_ = false;
    chunks_ = Chunks(groups, panels, threads_, resources.scratch_bytes, [this](int64_t p) { return floats(p); });
  }

  void run() {
    Inverses inverse(a.bank, a.normalize);
    if (a.normalize && (!once() || a.lses_given)) inverse.take_all(a.bank, threads_);
    if (parts_ == 1) {
      Scratch scratch(threads_, floats(chunks_.panels));
#pragma omp parallel for schedule(dynamic) num_threads(threads_)
      for (int64_t item = 0; item < chunks_.count; ++item) {
        Part part = open(item, 0, inverse, scratch.thread(thread_number()));
        if (!a.lses_given) {
          sweep(part);
          finish_rows(&part);
        }
        if constexpr (SIDES > 0) {
          if (!a.student_grad) continue;
          sum_gradient(part);
          finish_gradient(&part);
        }
      }
      return;
    }
    Scratch scratch(static_cast<int>(parts_), floats(chunks_.panels));
    std::unique_ptr<Part[]> part(new Part[parts_]);
    for (int64_t item = 0; item < chunks_.count; ++item) {
#pragma omp parallel for schedule(static) num_threads(threads_)
      for (int64_t p = 0; p < parts_; ++p) {
        part[p] = open(item, p, inverse, scratch.thread(static_cast<int>(p)));
        if (!a.lses_given) sweep(part[p]);
      }
      if (!a.lses_given) finish_rows(part.get());
      if constexpr (SIDES > 0) {
        if (!a.student_grad) continue;
#pragma omp parallel for schedule(static) num_threads(threads_)
        for (int64_t p = 0; p < parts_; ++p) sum_gradient(part[p]);
        finish_gradient(part.get());
      }
    }
  }

 private:
  static constexpr int L = kLanes<NV>;
  static constexpr bool kPair = SIDES == 2;
  static constexpr int64_t kWide = kPair ? 2 * L : L;  // floats of one bank row's scores
  static constexpr int64_t kAhead = 8;                 // tiles
  static constexpr int64_t kFew = 2;                   // queries that are not worth a panel's lanes

  struct Panel {
    int64_t first, count;  // queries
    float *student, *student_inverse, *teacher, *teacher_inverse;
    Softmax<NV, SIDES>* softmax;
    Selection<NV>* selection;
    float* candidates;        // of the selection: scores
    int32_t* candidate_rows;  // and their bank rows
    float* kept;              // exponentials of the part's bank rows [rows][kWide], or scores of its first tiles
    float* maxima;            // what they are relative to, by tile (or of the last tile only)
    float* gradient;          // [D][L]
    float* gradient_rows;     // the same of a few queries [kFew][D]
  };

  // A chunk's panels and the tiles of the bank that they sweep.
  struct Part {
    int64_t group, panels, first_tile, tiles;
    Panel* panel;
    Rows bank;
    float* scale;                    // of the bank's rows, or nullptr
    float* row;                      // a query before it is packed into a panel
    float *stream, *loose, *packed;  // a tile's rows, its scores, its rows as features
  };

  // The layout of the scratch of a part with `panels` panels.
  void lay_out(Part& part, int64_t panels, Cutter& cut) const {
    part.panel = cut.take<Panel>(panels);
    part.row = cut.take(features);
    part.stream = cut.take(tile_ * features);
    part.loose = cut.take(tile_ * kWide);
    part.packed = a.student_grad ? cut.take(packed_floats(tile_, features)) : nullptr;
    for (int64_t p = 0; p < panels; ++p) {
      Panel measured;
      lay_out(part.panel ? part.panel[p] : measured, cut);
    }
  }

  void lay_out(Panel& q, Cutter& cut) const {
    q.student = cut.take(features * L);
    q.student_inverse = cut.take(L);
    if constexpr (kPair) {
      q.teacher = cut.take(features * L);
      q.teacher_inverse = cut.take(L);
    }
    if constexpr (SIDES > 0) {
      q.softmax = cut.take<Softmax<NV, SIDES>>(1);
      q.maxima = cut.take(kWide * (keep_ ? part_tiles_ : 1));
    }
    q.kept = cut.take((keep_ ? std::min(part_tiles_ * tile_, rows) : ahead_ * tile_) * kWide);
    if (a.student_grad) q.gradient = cut.take(features * L);
    if (a.student_grad && few()) q.gradient_rows = cut.take(features * kFew);
    if (a.k > 0) {
      q.selection = cut.take<Selection<NV>>(1);
      q.candidates = cut.take(L * entries_);
      q.candidate_rows = cut.take<int32_t>(L * entries_);
    }
  }

  int64_t floats(int64_t panels) const {
    Part part;
    Cutter measure;
    lay_out(part, panels, measure);
    return measure.used();
  }

  Part open(int64_t item, int64_t number, const Inverses& inverse, float* memory) const {
    const int64_t group = item / chunks_.per_group, first = item % chunks_.per_group * chunks_.panels * L;
    Part part;
    part.group = group;
    part.panels = std::min(chunks_.panels, (queries - first + L - 1) / L);
    part.first_tile = number * part_tiles_;
    part.tiles = std::min(part_tiles_, tiles_ - part.first_tile);
    part.bank = group_rows(a.bank, group);
    part.scale = inverse.group(group);
    Cutter cut(memory);
    lay_out(part, part.panels, cut);
    for (int64_t p = 0; p < part.panels; ++p) open(part.panel[p], group, first + p * L, part.row);
    return part;
  }

  void open(Panel& q, int64_t group, int64_t first, float* row) const {
    q.first = first;
    q.count = std::min<int64_t>(L, queries - first);
    pack_panel<NV>(group_rows(a.student, group), first, q.count, a.normalize, a.normalize, row, q.student,
                   q.student_inverse);
    if constexpr (kPair)
      pack_panel<NV>(group_rows(a.teacher, group), first, q.count, a.normalize, a.normalize, row, q.teacher,
                     q.teacher_inverse);
    if (a.k > 0)
      q.selection->start(q.candidates, q.candidate_rows, entries_, a.k,
                         a.query_labels ? a.query_labels + group * queries + first : nullptr, q.count);
    if constexpr (kPair)
      if (a.lses_given) take_lses(q, group * queries + first);
  }

  // The softmaxes as a sweep would leave them: with a score near its log-sum-exp for a maximum, no sum is large.
  void take_lses(Panel& q, int64_t start) const {
    float student_sum[L], teacher_sum[L];
    for (int64_t lane = 0; lane < L; ++lane) {
      const int64_t i = start + std::min(lane, q.count - 1);  // spare lanes do as the last one does
      const Reference s(a.student_lse[i], a.student_temp), t(a.teacher_lse[i], a.teacher_temp);
      q.maxima[lane] = s.score;
      q.maxima[L + lane] = t.score;
      student_sum[lane] = std::exp2(-s.rest);
      teacher_sum[lane] = std::exp2(-t.rest);
    }
    for (int v = 0; v < NV; ++v) {
      q.softmax->student_max[v] = load(q.maxima + v * kWidth);
      q.softmax->teacher_max[v] = load(q.maxima + L + v * kWidth);
      q.softmax->sums[v].student = load(student_sum + v * kWidth);
      q.softmax->sums[v].teacher = load(teacher_sum + v * kWidth);
    }
  }

  // Whether every bank row is gone over by a single sweep: then that takes the rows as they lie, and their norms on the
  // way, so that a long bank is fetched from memory one time less.
  bool once() const { return chunks_.per_group == 1; }

  bool few() const { return NV == 1 && queries <= kFew; }

  // A tile's rows for the products.
  const float* stream_of(const Part& part, int64_t j, int64_t count) const {
    if (!once()) {
      open_stream(part.bank, j, count, nullptr, part.stream);
      return part.stream;
    }
    const float* stream = view_stream(part.bank, j, count, part.stream);
    for (int64_t i = 0; part.scale && i < count; ++i) part.scale[j + i] = inverse_norm(stream + i * features, features);
    return stream;
  }

  // Selection, both softmaxes and their exponentials. The selection sees the scores of the first tiles together before
  // it takes any.
  void sweep(const Part& part) const {
    const BankLabels labels{a.bank_labels ? a.bank_labels + part.group * rows : nullptr, labels_fit_};
    const int64_t ahead = part.tiles >= ahead_ ? ahead_ : 0;
    for (int64_t t = 0; t < part.tiles; ++t) {
      const int64_t j = (part.first_tile + t) * tile_, count = std::min(tile_, rows - j);
      const float* stream = stream_of(part, j, count);
      for (int64_t p = 0; p < part.panels; ++p) {
        const Panel& q = part.panel[p];
        float* tile = keep_ || t < ahead ? q.kept + t * tile_ * kWide : part.loose;
        score_tile(q, stream, count, part.scale ? part.scale + j : nullptr, tile);
        if (t >= ahead) use(q, t, j, count, tile, labels);
      }
      if (t + 1 != ahead) continue;
      for (int64_t p = 0; p < part.panels; ++p) {
        const Panel& q = part.panel[p];
        const int64_t first = part.first_tile * tile_;
        q.selection->look(q.kept, kWide, first, j + count - first, labels);
        for (int64_t s = 0; s < ahead; ++s)
          use(q, s, first + s * tile_, std::min(tile_, rows - first - s * tile_), q.kept + s * tile_ * kWide, labels);
      }
    }
  }

  // Takes tile `t` of a part, whose first bank row is `j`, into the selection and the softmaxes.
  void use(const Panel& q, int64_t t, int64_t j, int64_t count, float* tile, BankLabels labels) const {
    if (a.k > 0) q.selection->take(tile, kWide, j, count, labels);
    if constexpr (SIDES > 0) {
      const FlushSubnormals flush;
      softmax_tile(tile, count, scales_, t == 0, *q.softmax, q.maxima + (keep_ ? t * kWide : 0));
    }
  }

  // Merges the parts and writes the rows' results.
  void finish_rows(const Part* part) const {
    for (int64_t p = 0; p < part->panels; ++p) {
      const Panel& whole = part->panel[p];
      for (int64_t other = 1; other < parts_; ++other) {
        const Panel& q = part[other].panel[p];
        if (a.k > 0) whole.selection->take_over(*q.selection);
        if constexpr (SIDES > 0) merge(*whole.softmax, *q.softmax, scales_);
      }
      for (int64_t other = 1; SIDES > 0 && other < parts_; ++other) *part[other].panel[p].softmax = *whole.softmax;
      write_rows(whole, part->group);
    }
  }

  // The part's sum of the gradient in unit rows.
  void sum_gradient(const Part& part) const {
    const FlushSubnormals flush;
    for (int64_t p = 0; p < part.panels; ++p) {
      std::memset(part.panel[p].gradient, 0, sizeof(float) * features * L);
      if (few()) std::memset(part.panel[p].gradient_rows, 0, sizeof(float) * features * kFew);
    }
    for (int64_t t = 0; t < part.tiles; ++t) {
      const int64_t j = (part.first_tile + t) * tile_, count = std::min(tile_, rows - j);
      const float* stream = part.stream;
      if (few()) {
        stream = view_stream(part.bank, j, count, part.stream);
      } else {
        open_stream(part.bank, j, count, nullptr, part.stream);
        pack_features(stream, count, features, part.packed);
      }
      const float* row_scale = part.scale ? part.scale + j : nullptr;
      for (int64_t p = 0; p < part.panels; ++p) {
        const Panel& q = part.panel[p];
        float* tile = keep_ ? q.kept + t * tile_ * kWide : part.loose;
        const float* maxima = q.maxima + (keep_ ? t * kWide : 0);  // those of the last tile are the part's
        if (!keep_) {
          score_tile(q, stream, count, row_scale, tile);
          exponential_tile<NV, SIDES>(tile, count, scales_, maxima);
        }
        weight_tile(tile, count, scales_, maxima, *q.softmax, static_cast<float>(a.student_temp), row_scale);
        if (few())
          accumulate_few(stream, count, tile, kWide, q.count, features, q.gradient_rows);
        else
          accumulate<NV>(part.packed, count, tile, kWide, features, q.gradient);
      }
    }
    for (int64_t p = 0; few() && p < part.panels; ++p) {
      const Panel& q = part.panel[p];
      for (int64_t lane = 0; lane < q.count; ++lane)
        for (int64_t d = 0; d < features; ++d) q.gradient[d * L + lane] = q.gradient_rows[lane * features + d];
    }
  }

  // Adds the parts' sums and writes the gradient in raw rows.
  void finish_gradient(const Part* part) const {
    const FlushSubnormals flush;
    for (int64_t p = 0; p < part->panels; ++p) {
      const Panel& q = part->panel[p];
      for (int64_t other = 1; other < parts_; ++other)
        axpy(1.0f, part[other].panel[p].gradient, q.gradient, features * L);
      unpack_gradient<NV>(q.gradient, q.student, q.student_inverse, a.normalize, features, q.first, q.count,
                          a.student_grad + part->group * queries * features);
    }
  }

  void score_tile(const Panel& q, const float* stream, int64_t count, const float* row_scale, float* tile) const {
    score<NV>(stream, count, q.student, features, row_scale, tile, kWide);
    if constexpr (kPair) score<NV>(stream, count, q.teacher, features, row_scale, tile + L, kWide);
  }

  void write_rows(const Panel& q, int64_t group) const {
    const int64_t start = group * queries + q.first;
    for (int64_t lane = 0; lane < q.count; ++lane) {
      const int64_t out = start + lane;
      const auto value = [lane](const vf& v) { return static_cast<double>(v[lane % kWidth]); };
      if constexpr (SIDES == 1) {
        a.student_lse[out] = value(q.softmax->student_max[lane / kWidth]) / a.student_temp +
                             std::log(value(q.softmax->sum[lane / kWidth]));
      }
      if constexpr (kPair) {
        const Sums& sums = q.softmax->sums[lane / kWidth];
        const double student_max = value(q.softmax->student_max[lane / kWidth]) / a.student_temp;
        const double teacher_max = value(q.softmax->teacher_max[lane / kWidth]) / a.teacher_temp;
        const double student_log = std::log(value(sums.student)), teacher_log = std::log(value(sums.teacher));
        const double student_there = value(q.softmax->student_there[lane / kWidth]) / a.student_temp;
        const double divergence = kLn2 * value(sums.divergence) / value(sums.teacher);
        a.kl[out] = static_cast<float>(divergence + (student_max - student_there) + student_log - teacher_log);
        if (a.student_lse) {
          a.student_lse[out] = student_max + student_log;
          a.teacher_lse[out] = teacher_max + teacher_log;
          a.logit_gap[out] = divergence + (teacher_max - student_there);
        }
      }
      if (a.k > 0) q.selection->finish(static_cast<int>(lane), a.similarity + out * a.k, a.index + out * a.k);
    }
  }

  const BankPass& a;
  const int64_t groups, queries, rows, features;
  bool keep_, labels_fit_;
  const int64_t entries_;  // of a selection buffer
  const int64_t tile_, tiles_;
  int64_t parts_ = 1, part_tiles_;  // of the bank, where it is split over threads
  int64_t ahead_;                   // tiles that are scored before the selection begins
  const Scales scales_;
  Chunks chunks_;
  int threads_;
};

template <int SIDES>
void pass(const BankPass& args, Resources resources) {
  // A panel of one vector wastes less where one vector holds every query.
  if (args.shape.queries <= kWidth)
    Pass<1, SIDES>(args, resources).run();
  else
    Pass<2, SIDES>(args, resources).run();
}

}  // namespace

void bank_pass(const BankPass& args, Resources resources) {
  if (args.teacher.given())
    pass<2>(args, resources);
  else if (args.student_lse)
    pass<1>(args, resources);
  else
    pass<0>(args, resources);
}

}  // namespace action::ACTION_ISA
