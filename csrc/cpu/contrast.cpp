// action_contrast, hard_negatives and their bank gradient: one pass over the bank per panel of queries.
//
// A panel's lanes are queries; the bank streams by in tiles. Each tile of scores is used while it lies in the cache:
// the selection takes what beats its threshold, then an online softmax turns scores into exponentials relative to the
// running maximum. When the whole row is known, exponentials become gradient weights and flow back through the bank.
// Exponentials are kept between the two phases where the scratch limit allows (3 products in all), recomputed where
// the bank is too long for that (5 products).
#include <algorithm>
#include <cmath>

#include "kernels.h"
#include "parallel.h"
#include "select.h"
#include "tile.h"

namespace action::ACTION_ISA {
namespace {

// Softmaxes of one panel, lane by lane: s and t are scores, c = log2(e) / temperature.
template <int NV>
struct Softmax {
  vf student_max[NV], teacher_max[NV];
  vf student_sum[NV], teacher_sum[NV];  // sums of 2**((s - max) c)
  vf divergence[NV];                    // sum of 2**((t - max) c) * ((t - max) c_t - (s - max) c_s)
};

// Takes a tile of scores [count][2][lanes] into the softmaxes and leaves the exponentials in its place.
// `maxima` [2][lanes] gets the maxima that they are relative to.
template <int NV>
void softmax_tile(float* tile, int64_t count, float student_scale, float teacher_scale, bool first, Softmax<NV>& state,
                  float* maxima) {
  constexpr int L = kLanes<NV>;
  const vf cs = set1(student_scale), ct = set1(teacher_scale);
  vf ms[NV], mt[NV], zs[NV] = {}, zt[NV] = {}, kl[NV] = {};
  for (int v = 0; v < NV; ++v) {
    ms[v] = first ? load(tile + v * kWidth) : state.student_max[v];
    mt[v] = first ? load(tile + L + v * kWidth) : state.teacher_max[v];
  }
  for (int64_t j = 0; j < count; ++j) {
    const float* row = tile + j * 2 * L;
    for (int v = 0; v < NV; ++v) {
      ms[v] = max(ms[v], load(row + v * kWidth));
      mt[v] = max(mt[v], load(row + L + v * kWidth));
    }
  }
  for (int64_t j = 0; j < count; ++j) {
    float* row = tile + j * 2 * L;
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      vf s = (load(row + v * kWidth) - ms[v]) * cs;
      vf t = (load(row + L + v * kWidth) - mt[v]) * ct;
      vf es = exp2(s), et = exp2(t);
      store(row + v * kWidth, es);
      store(row + L + v * kWidth, et);
      zs[v] += es;
      zt[v] += et;
      kl[v] += et * (t - s);
    }
  }
  for (int v = 0; v < NV; ++v) {
    if (!first) {  // what came before moves to the new maxima
      vf s = (state.student_max[v] - ms[v]) * cs;
      vf t = (state.teacher_max[v] - mt[v]) * ct;
      vf fs = exp2(s), ft = exp2(t);
      kl[v] += (state.divergence[v] + state.teacher_sum[v] * (t - s)) * ft;
      zs[v] += state.student_sum[v] * fs;
      zt[v] += state.teacher_sum[v] * ft;
    }
    state.student_max[v] = ms[v];
    state.teacher_max[v] = mt[v];
    state.student_sum[v] = zs[v];
    state.teacher_sum[v] = zt[v];
    state.divergence[v] = kl[v];
    store(maxima + v * kWidth, ms[v]);
    store(maxima + L + v * kWidth, mt[v]);
  }
}

// Exponentials relative to `maxima` become (p_s - p_t) / student_temp * scale[j], in the student's place.
template <int NV>
void weight_tile(float* tile, int64_t count, const float* maxima, const Softmax<NV>& state, float student_scale,
                 float teacher_scale, float student_temp, const float* scale) {
  constexpr int L = kLanes<NV>;
  vf as[NV], at[NV];
  for (int v = 0; v < NV; ++v) {
    vf temp = set1(student_temp);
    as[v] = exp2((load(maxima + v * kWidth) - state.student_max[v]) * set1(student_scale)) /
            (state.student_sum[v] * temp);
    at[v] = exp2((load(maxima + L + v * kWidth) - state.teacher_max[v]) * set1(teacher_scale)) /
            (state.teacher_sum[v] * temp);
  }
  for (int64_t j = 0; j < count; ++j) {
    float* row = tile + j * 2 * L;
    const vf factor = set1(scale ? scale[j] : 1.0f);
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) {
      // Equal distributions must cancel exactly, so neither product may be fused into the difference.
      vf ps = load(row + v * kWidth) * as[v], pt = load(row + L + v * kWidth) * at[v];
      store(row + v * kWidth, (rounded(ps) - rounded(pt)) * factor);
    }
  }
}

// Exponentials of raw scores relative to the final maxima, for a tile that was not kept.
template <int NV>
void exponential_tile(float* tile, int64_t count, const float* maxima, float student_scale, float teacher_scale) {
  constexpr int L = kLanes<NV>;
  for (int64_t j = 0; j < count; ++j) {
    float* row = tile + j * 2 * L;
    for (int v = 0; v < NV; ++v) {
      float *s = row + v * kWidth, *t = row + L + v * kWidth;
      store(s, exp2((load(s) - load(maxima + v * kWidth)) * set1(student_scale)));
      store(t, exp2((load(t) - load(maxima + L + v * kWidth)) * set1(teacher_scale)));
    }
  }
}

// Selection for one panel. Class labels that fit 32 bits are compared lane by lane before any score is looked at.
template <int NV>
struct PanelSelection {
  Selector lane[kLanes<NV>];
  alignas(64) float threshold[kLanes<NV>];
  int64_t label[kLanes<NV>];
  alignas(64) int32_t short_label[kLanes<NV>];
};

struct BankLabels {
  const int64_t* label;  // nullptr: every row may be selected
  bool fit;              // every label of bank and queries fits 32 bits
};

template <int NV>
void select_tile(const float* scores, int64_t stride, int64_t first, int64_t count, BankLabels labels,
                 PanelSelection<NV>& selection) {
  vf threshold[NV];
  vi own[NV];
  for (int v = 0; v < NV; ++v) {
    threshold[v] = load(selection.threshold + v * kWidth);
    own[v] = load(selection.short_label + v * kWidth);
  }
  for (int64_t j = 0; j < count; ++j) {
    uint32_t hits = 0;
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v)
      hits |= lanes_above(load(scores + j * stride + v * kWidth), threshold[v]) << (v * kWidth);
    if (hits == 0) continue;
    if (labels.label) {
      const int64_t label = labels.label[first + j];
      if (label < 0) continue;
      if (labels.fit) {
        uint32_t same = 0;
        for (int v = 0; v < NV; ++v) same |= lanes_equal(own[v], set1((int32_t)label)) << (v * kWidth);
        hits &= ~same;
      } else {
        for (int lane = 0; lane < kLanes<NV>; ++lane)
          if (selection.label[lane] == label) hits &= ~(1u << lane);
      }
      if (hits == 0) continue;
    }
    for (; hits; hits &= hits - 1) {
      const int lane = __builtin_ctz(hits);
      selection.threshold[lane] =
          push(selection.lane[lane], scores[j * stride + lane], first + j, selection.threshold[lane]);
    }
    for (int v = 0; v < NV; ++v) threshold[v] = load(selection.threshold + v * kWidth);
  }
}

bool labels_fit(const int64_t* labels, int64_t count) {
  int64_t outside = 0;
  if (labels)
    for (int64_t i = 0; i < count; ++i) outside |= labels[i] ^ static_cast<int32_t>(labels[i]);
  return outside == 0;
}

// 1 / norm of every row of every group.
void inverse_norms(const Matrix& matrix, int64_t groups, int64_t rows, int64_t features, float* row_buffer, int threads,
                   int64_t buffer_stride, float* inverse) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t i = 0; i < groups * rows; ++i) {
    const Rows group = group_rows(matrix, i / rows, features);
    const float* x = view_row(group, i % rows, row_buffer + thread_number() * buffer_stride);
    inverse[i] = inverse_norm(dot(x, x, features));
  }
}

// How the work is cut: panels of a chunk share every tile of the stream that has to be converted or fetched.
struct Plan {
  int threads;
  int64_t panels;  // of a chunk
  int64_t tile;    // stream rows
  bool keep;       // exponentials of all bank rows are kept
  int64_t floats;  // scratch of a thread
};

template <int NV>
class ContrastPass {
 public:
  ContrastPass(const Contrast& args, Resources resources) : a(args) {
    const int64_t groups = a.shape.groups, queries = a.shape.queries, rows = a.shape.rows, features = a.shape.features;
    distil_ = a.teacher.data != nullptr;
    width_ = distil_ ? 2 * L : L;
    entries_ = a.k > 0 ? Selector::entries(a.k, rows) : 0;
    student_scale_ = static_cast<float>(kLog2e / a.student_temp);
    teacher_scale_ = static_cast<float>(kLog2e / a.teacher_temp);
    labels_fit_ = a.k > 0 && labels_fit(a.query_labels, groups * queries) && labels_fit(a.bank_labels, groups * rows);
    tile_ = tile_rows(features, rows);
    tiles_ = (rows + tile_ - 1) / tile_;
    threads_ = useful_threads(resources.threads, 3.0 * groups * queries * rows * features);

    const int64_t all_panels = (queries + L - 1) / L;
    keep_ = distil_ && a.direction;
    const int64_t budget = resources.scratch / 4 / threads_;
    if (keep_ && floats(1) > budget) keep_ = false;
    panels_ = std::min<int64_t>(kChunk, all_panels);
    while (panels_ > 1 && (floats(panels_) > budget || groups * ((all_panels + panels_ - 1) / panels_) < 4 * threads_))
      --panels_;
    chunks_ = (all_panels + panels_ - 1) / panels_;
  }

  void run() {
    const int64_t groups = a.shape.groups, queries = a.shape.queries, rows = a.shape.rows, features = a.shape.features;
    Scratch scratch(threads_, floats(panels_));
    std::unique_ptr<float[]> inverse;
    if (a.normalize) {
      inverse.reset(new float[groups * rows]);
      Scratch row(threads_, features);
      inverse_norms(a.bank, groups, rows, features, row.thread(0), threads_, row.thread(1) - row.thread(0),
                    inverse.get());
    }
    const int64_t items = groups * chunks_;
#pragma omp parallel for schedule(dynamic) num_threads(threads_)
    for (int64_t item = 0; item < items; ++item) {
      const int64_t group = item / chunks_;
      chunk(group, item % chunks_ * panels_ * L, inverse ? inverse.get() + group * rows : nullptr,
            scratch.thread(thread_number()));
    }
  }

 private:
  static constexpr int L = kLanes<NV>;
  static constexpr int64_t kChunk = 4;

  struct Panel {
    float *student, *teacher, *inverse, *unused, *kept, *maxima, *direction;
    Softmax<NV>* softmax;
    PanelSelection<NV>* selection;
    int64_t first, count;  // queries
  };

  // Scratch of a thread for chunks of `panels` panels; chunk() cuts the same pieces.
  int64_t floats(int64_t panels) const {
    const int64_t features = a.shape.features;
    int64_t panel = Cutter::size<float>(features * L) * (1 + distil_ + (a.direction != nullptr)) +
                    2 * Cutter::size<float>(L) + Cutter::size<Softmax<NV>>(1) +
                    Cutter::size<float>(2 * L * (keep_ ? tiles_ : 1));
    if (keep_) panel += Cutter::size<float>(a.shape.rows * width_);
    if (a.k > 0) panel += Cutter::size<PanelSelection<NV>>(1) + Cutter::size<Candidate>(L * entries_);
    return panels * panel + Cutter::size<Panel>(panels) + Cutter::size<float>(features) +
           Cutter::size<float>(tile_ * features) + Cutter::size<float>(tile_ * width_);
  }

  void chunk(int64_t group, int64_t first, const float* scale, float* memory) const {
    const int64_t groups = a.shape.groups, queries = a.shape.queries, rows = a.shape.rows, features = a.shape.features;
    const Rows student = group_rows(a.student, group, features), bank = group_rows(a.bank, group, features);
    const BankLabels labels{a.bank_labels ? a.bank_labels + group * rows : nullptr, labels_fit_};
    const int64_t panels = std::min(panels_, (queries - first + L - 1) / L);
    Cutter cut(memory);
    Panel* panel = cut.take<Panel>(panels_);
    float* row = cut.take(features);
    float* converted = cut.take(tile_ * features);
    float* loose = cut.take(tile_ * width_);
    for (int64_t p = 0; p < panels; ++p) {
      Panel& q = panel[p];
      q.first = first + p * L;
      q.count = std::min<int64_t>(L, queries - q.first);
      q.inverse = cut.take(L);
      q.unused = cut.take(L);
      q.student = cut.take(features * L);
      pack_panel<NV>(student, q.first, q.count, a.normalize, a.normalize, row, q.student, q.inverse);
      if (distil_) {
        q.teacher = cut.take(features * L);
        pack_panel<NV>(group_rows(a.teacher, group, features), q.first, q.count, a.normalize, a.normalize, row, q.teacher, q.unused);
        q.softmax = cut.take<Softmax<NV>>(1);
        q.maxima = cut.take(2 * L * (keep_ ? tiles_ : 1));
      }
      if (keep_) q.kept = cut.take(rows * width_);
      if (a.direction) q.direction = cut.take(features * L);
      if (a.k > 0) {
        q.selection = cut.take<PanelSelection<NV>>(1);
        start_selection(q, group, cut.take<Candidate>(L * entries_));
      }
    }

    for (int64_t t = 0; t < tiles_; ++t) {
      const int64_t j = t * tile_, count = std::min(tile_, rows - j);
      const Stream stream = open_stream(bank, j, count, converted);
      for (int64_t p = 0; p < panels; ++p) {
        Panel& q = panel[p];
        float* tile = keep_ ? q.kept + j * width_ : loose;
        score_tile(q, stream, count, scale ? scale + j : nullptr, tile);
        if (a.k > 0) select_tile<NV>(tile, width_, j, count, labels, *q.selection);
        if (distil_)
          softmax_tile<NV>(tile, count, student_scale_, teacher_scale_, t == 0, *q.softmax,
                           q.maxima + (keep_ ? t * 2 * L : 0));
      }
    }
    for (int64_t p = 0; p < panels; ++p) write_rows(panel[p], group);
    if (!a.direction) return;

    for (int64_t p = 0; p < panels; ++p) std::memset(panel[p].direction, 0, sizeof(float) * features * L);
    for (int64_t t = 0; t < tiles_; ++t) {
      const int64_t j = t * tile_, count = std::min(tile_, rows - j);
      const Stream stream = open_stream(bank, j, count, converted);
      const float* tile_scale = scale ? scale + j : nullptr;
      for (int64_t p = 0; p < panels; ++p) {
        Panel& q = panel[p];
        float* tile = keep_ ? q.kept + j * width_ : loose;
        if (!keep_) {  // q.maxima holds the last tile's maxima, which are the final ones
          score_tile(q, stream, count, tile_scale, tile);
          exponential_tile<NV>(tile, count, q.maxima, student_scale_, teacher_scale_);
        }
        weight_tile<NV>(tile, count, q.maxima + (keep_ ? t * 2 * L : 0), *q.softmax, student_scale_, teacher_scale_,
                        static_cast<float>(a.student_temp), tile_scale);
        accumulate<NV>(stream, count, tile, width_, features, q.direction);
      }
    }
    for (int64_t p = 0; p < panels; ++p) {
      const Panel& q = panel[p];
      unpack_gradient<NV>(q.direction, q.student, q.inverse, a.normalize, features, q.first, q.count,
                          a.direction + group * queries * features);
    }
  }

  void score_tile(const Panel& q, Stream stream, int64_t count, const float* scale, float* tile) const {
    score<NV>(stream, count, q.student, a.shape.features, scale, tile, width_);
    if (distil_) score<NV>(stream, count, q.teacher, a.shape.features, scale, tile + L, width_);
  }

  void start_selection(Panel& q, int64_t group, Candidate* buffer) const {
    PanelSelection<NV>& selection = *q.selection;
    for (int lane = 0; lane < L; ++lane) {
      const bool real = lane < q.count;
      selection.lane[lane] = {buffer + lane * entries_, 0, entries_, a.k};
      selection.threshold[lane] = real ? -INFINITY : INFINITY;
      selection.label[lane] = real && a.query_labels ? a.query_labels[group * a.shape.queries + q.first + lane] : -1;
      selection.short_label[lane] = static_cast<int32_t>(selection.label[lane]);
    }
  }

  void write_rows(const Panel& q, int64_t group) const {
    const int64_t start = group * a.shape.queries + q.first;
    for (int64_t lane = 0; lane < q.count; ++lane) {
      if (distil_) {
        auto value = [lane](const vf* v) { return static_cast<double>(v[lane / kWidth][lane % kWidth]); };
        const double student_sum = value(q.softmax->student_sum), teacher_sum = value(q.softmax->teacher_sum);
        const double student_log = std::log(student_sum), teacher_log = std::log(teacher_sum);
        a.kl[start + lane] =
            static_cast<float>(kLn2 * value(q.softmax->divergence) / teacher_sum + student_log - teacher_log);
        a.student_lse[start + lane] = value(q.softmax->student_max) / a.student_temp + student_log;
        a.teacher_lse[start + lane] = value(q.softmax->teacher_max) / a.teacher_temp + teacher_log;
      }
      if (a.k > 0)
        finish(q.selection->lane[lane], a.similarity + (start + lane) * a.k, a.index + (start + lane) * a.k);
    }
  }

  const Contrast& a;
  bool distil_, keep_, labels_fit_;
  int64_t width_, entries_, tile_, tiles_, panels_, chunks_;
  float student_scale_, teacher_scale_;
  int threads_;
};

// Here the panels are bank rows and the queries stream by, so that every bank row's sum has one owner and one order.
// The bank's scale multiplies the finished product, as in the forward pass: scores must be the very same numbers that
// the log-sum-exps were made of, or a sharp softmax would be off by one rounding / temperature.
template <int NV>
class BankGradientPass {
 public:
  BankGradientPass(const BankGradient& args, Resources resources) : a(args) {
    const int64_t groups = a.shape.groups, queries = a.shape.queries, rows = a.shape.rows, features = a.shape.features;
    tile_ = tile_rows(features, queries);
    threads_ = useful_threads(resources.threads, 4.0 * groups * queries * rows * features);
    const int64_t all_panels = (rows + L - 1) / L;
    const int64_t budget = resources.scratch / 4 / threads_;
    panels_ = std::min<int64_t>(4, all_panels);
    while (panels_ > 1 && (floats(panels_) > budget || groups * ((all_panels + panels_ - 1) / panels_) < 4 * threads_))
      --panels_;
    chunks_ = (all_panels + panels_ - 1) / panels_;
  }

  void run() {
    const int64_t groups = a.shape.groups, queries = a.shape.queries, rows = a.shape.rows, features = a.shape.features;
    Scratch scratch(threads_, floats(panels_));
    std::unique_ptr<float[]> inverse;
    if (a.normalize) {
      inverse.reset(new float[2 * groups * queries]);
      Scratch row(threads_, features);
      const int64_t stride = row.thread(1) - row.thread(0);
      inverse_norms(a.student, groups, queries, features, row.thread(0), threads_, stride, inverse.get());
      inverse_norms(a.teacher, groups, queries, features, row.thread(0), threads_, stride,
                    inverse.get() + groups * queries);
    }
    const int64_t items = groups * chunks_;
#pragma omp parallel for schedule(dynamic) num_threads(threads_)
    for (int64_t item = 0; item < items; ++item) {
      const int64_t group = item / chunks_;
      const float* student_inverse = inverse ? inverse.get() + group * queries : nullptr;
      const float* teacher_inverse = inverse ? student_inverse + groups * queries : nullptr;
      chunk(group, item % chunks_ * panels_ * L, student_inverse, teacher_inverse, scratch.thread(thread_number()));
    }
  }

 private:
  static constexpr int L = kLanes<NV>;

  int64_t floats(int64_t panels) const {
    const int64_t features = a.shape.features;
    return panels * (2 * Cutter::size<float>(features * L) + Cutter::size<float>(L)) + Cutter::size<float>(features) +
           2 * Cutter::size<float>(tile_ * features) + Cutter::size<float>(tile_ * 2 * L);
  }

  void chunk(int64_t group, int64_t first, const float* student_inverse, const float* teacher_inverse,
             float* memory) const {
    const int64_t groups = a.shape.groups, queries = a.shape.queries, rows = a.shape.rows, features = a.shape.features;
    const Rows student = group_rows(a.student, group, features), teacher = group_rows(a.teacher, group, features);
    const Rows bank = group_rows(a.bank, group, features);
    const int64_t panels = std::min(panels_, (rows - first + L - 1) / L);
    const int64_t size = Cutter::size<float>(features * L);
    Cutter cut(memory);
    float* row = cut.take(features);
    float* student_rows = cut.take(tile_ * features);
    float* teacher_rows = cut.take(tile_ * features);
    float* tile = cut.take(tile_ * 2 * L);
    float* inverse = cut.take(L * panels_);
    float* panel = cut.take(size * panels_);
    float* gradient = cut.take(size * panels_);
    std::memset(gradient, 0, sizeof(float) * size * panels);
    auto count_of = [&](int64_t p) { return std::min<int64_t>(L, rows - first - p * L); };
    for (int64_t p = 0; p < panels; ++p)
      pack_panel<NV>(bank, first + p * L, count_of(p), a.normalize, false, row, panel + p * size, inverse + p * L);

    for (int64_t i = 0; i < queries; i += tile_) {
      const int64_t count = std::min(tile_, queries - i);
      const Stream s = open_unit_stream(student, i, count, student_inverse, student_rows);
      const Stream t = open_unit_stream(teacher, i, count, teacher_inverse, teacher_rows);
      for (int64_t p = 0; p < panels; ++p) {
        score<NV>(s, count, panel + p * size, features, nullptr, tile, 2 * L);
        score<NV>(t, count, panel + p * size, features, nullptr, tile + L, 2 * L);
        weights(tile, group * queries + i, count, inverse + p * L);
        accumulate<NV>(s, count, tile, 2 * L, features, gradient + p * size);
        accumulate<NV>(t, count, tile + L, 2 * L, features, gradient + p * size);
      }
    }
    for (int64_t p = 0; p < panels; ++p) {
      float* unit = panel + p * size;
      for (int64_t d = 0; d < features; ++d)
        for (int lane = 0; lane < L; ++lane) unit[d * L + lane] *= inverse[p * L + lane];
      unpack_gradient<NV>(gradient + p * size, unit, inverse + p * L, a.normalize, features, first + p * L,
                          count_of(p), a.grad_bank + group * rows * features);
    }
  }

  // Scores become weights: (p_s - p_t) / student_temp and p_t (log p_t - log p_s - kl) / teacher_temp, times the
  // row's upstream gradient.
  void weights(float* tile, int64_t first, int64_t count, const float* inverse) const {
    const vf cs = set1(static_cast<float>(kLog2e / a.student_temp));
    const vf ct = set1(static_cast<float>(kLog2e / a.teacher_temp));
    for (int64_t i = 0; i < count; ++i) {
      const float g = a.grad_kl[first + i], kl = a.kl[first + i];
      const Reference rs(a.student_lse[first + i], a.student_temp), rt(a.teacher_lse[first + i], a.teacher_temp);
      const vf ws = set1(g / static_cast<float>(a.student_temp));
      const vf wt = set1(g / static_cast<float>(a.teacher_temp));
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
  int64_t tile_, panels_, chunks_;
  int threads_;
};

}  // namespace

// A panel of one vector wastes less where one vector holds every row.
void contrast(const Contrast& args, Resources resources) {
  if (args.shape.queries <= kWidth)
    ContrastPass<1>(args, resources).run();
  else
    ContrastPass<2>(args, resources).run();
}

void bank_gradient(const BankGradient& args, Resources resources) {
  if (args.shape.rows <= kWidth)
    BankGradientPass<1>(args, resources).run();
  else
    BankGradientPass<2>(args, resources).run();
}

void exp2_array(const float* x, float* y, int64_t n) {
  alignas(64) float in[kWidth] = {}, out[kWidth];
  for (int64_t i = 0; i < n; i += kWidth) {
    const int64_t count = std::min<int64_t>(kWidth, n - i);
    std::memcpy(in, x + i, 4 * count);
    store(out, exp2(load(in)));
    std::memcpy(y + i, out, 4 * count);
  }
}

}  // namespace action::ACTION_ISA
