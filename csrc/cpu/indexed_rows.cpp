// InfoNCE over gathered bank rows, and the gradient of gathered similarities: bank rows are read where they lie.
//
// The bank gradient has owners: every thread scans the index list in order and adds what falls into its range of bank
// rows, so that a row's sum has one order whatever the number of threads.
#include <algorithm>
#include <cmath>

#include "kernels.h"
#include "parallel.h"
#include "rows.h"
#include "subnormals.h"

namespace action::ACTION_ISA {
namespace {

constexpr int64_t kBatch = 16;  // gathered rows between two uses of the same row

// <x, y> and <y, y> in one sweep over y.
inline void dot_and_square(const float* x, const float* y, int64_t n, float& product, float& square) {
  vf p0{}, p1{}, q0{}, q1{};
  int64_t i = 0;
  for (; i + 2 * kWidth <= n; i += 2 * kWidth) {
    vf y0 = load(y + i), y1 = load(y + i + kWidth);
    p0 += load(x + i) * y0;
    p1 += load(x + i + kWidth) * y1;
    q0 += y0 * y0;
    q1 += y1 * y1;
  }
  for (; i + kWidth <= n; i += kWidth) {
    vf y0 = load(y + i);
    p0 += load(x + i) * y0;
    q0 += y0 * y0;
  }
  product = sum(p0 + p1);
  square = sum(q0 + q1);
  for (; i < n; ++i) {
    product += x[i] * y[i];
    square += y[i] * y[i];
  }
}

// Similarity of unit row x with raw row y; `inverse` gets 1 / |y| (1 without normalising).
inline float similarity(const float* x, const float* y, int64_t n, bool normalize, float& inverse) {
  inverse = 1.0f;
  if (!normalize) return dot(x, y, n);
  float product, square;
  dot_and_square(x, y, n, product, square);
  inverse = inverse_norm(square);
  return product * inverse;
}

// Asks for the bank row that follows entry n of an index list.
inline void prefetch_next(const Rows& bank, int64_t rows, const int64_t* index, int64_t n, int64_t k) {
  if (n + 1 < k && index[n + 1] >= 0 && index[n + 1] < rows) prefetch_row(bank, index[n + 1]);
}

// Row i as a unit row (as it is without normalising) in `out`; returns 1 / norm.
inline float unit_row(const Rows& rows, int64_t i, bool normalize, float* out) {
  read_row(rows, i, out);
  if (!normalize) return 1.0f;
  const float inverse = inverse_norm(dot(out, out, rows.features));
  for (int64_t d = 0; d < rows.features; ++d) out[d] *= inverse;
  return inverse;
}

// grad = (g - x <x, g>) * inverse, the gradient in the raw row of unit row x.
inline void project(const float* g, const float* x, float inverse, bool normalize, int64_t n, float* grad) {
  const float along = normalize && norm_counts(inverse) ? dot(x, g, n) : 0.0f;
  for (int64_t d = 0; d < n; ++d) grad[d] = (g[d] - along * x[d]) * inverse;
}

class GradientPass {
 public:
  GradientPass(const GatherGradient& args, Resources resources) : a(args) {
    const Shape& s = a.shape;
    threads_ = useful_threads(resources.threads, 3.0 * s.groups * s.queries * (a.k + 1) * s.features);
    // Weights of a block of queries; the rest of the scratch is a few rows a thread.
    const int64_t entries = std::max<int64_t>(resources.scratch / 8 / (a.k + 1), threads_);
    block_ = a.grad_bank ? std::min(s.queries, entries) : s.queries;
  }

  void run() {
    const Shape& s = a.shape;
    const int64_t features = s.features;
    Scratch scratch(threads_, Cutter::size<float>(features) * (3 + kBatch) + Cutter::size<float>(kBatch));
    std::unique_ptr<float[]> weights;
    if (a.grad_bank) weights.reset(new float[block_ * a.k]);
#pragma omp parallel num_threads(threads_)
    {
      const FlushSubnormals flush;
      float* memory = scratch.thread(thread_number());
      for (int64_t group = 0; group < s.groups; ++group) {
        for (int64_t first = 0; first < s.queries; first += block_) {
          const int64_t count = std::min(block_, s.queries - first);
#pragma omp for schedule(dynamic, 4)
          for (int64_t i = first; i < first + count; ++i)
            query(group, i, weights ? weights.get() + (i - first) * a.k : nullptr, memory);
          if (a.grad_bank) {
            bank_rows(group, first, count, weights.get(), memory);
#pragma omp barrier
          }
        }
        if (a.grad_bank && a.normalize) {
#pragma omp for schedule(static)
          for (int64_t j = 0; j < s.rows; ++j) bank_row(group, j, memory);
        }
      }
    }
  }

 private:
  // Gradients of one query and its positive; leaves the weights w_j / |query| for the bank.
  void query(int64_t group, int64_t i, float* weights, float* memory) const {
    const Shape& s = a.shape;
    const int64_t features = s.features, row = group * s.queries + i;
    const Rows bank = group_rows(a.bank, group, features);
    Cutter cut(memory);
    float *x = cut.take(features), *y = cut.take(features), *g = cut.take(features);
    float* converted = cut.take(kBatch * features);
    float* factor = cut.take(kBatch);
    const bool infonce = a.grad_similarity == nullptr;
    const float inverse = unit_row(group_rows(a.query, group, features), i, a.normalize, x);
    std::memset(g, 0, sizeof(float) * features);

    const float scale = static_cast<float>(1.0 / a.temp);
    const float upstream = infonce ? a.grad_loss[row] * scale : 1.0f;
    const Reference lse(infonce ? a.lse[row] : 0.0, a.temp);
    auto log_probability = [&](float score) { return (score - lse.score) * scale + lse.rest * static_cast<float>(kLn2); };
    if (infonce) {
      const float positive_inverse = unit_row(group_rows(a.positive, group, features), i, a.normalize, y);
      const float weight = upstream * std::expm1(log_probability(dot(x, y, features)));
      axpy(weight, y, g, features);
      if (a.grad_positive) {
        float* grad = a.grad_positive + row * features;
        float* scaled = converted;  // free until the bank is read
        for (int64_t d = 0; d < features; ++d) scaled[d] = weight * x[d];
        project(scaled, y, positive_inverse, a.normalize, features, grad);
      }
    }
    if (!a.grad_query && !weights) return;

    const int64_t* index = a.index + row * a.k;
    for (int64_t first = 0; first < a.k; first += kBatch) {
      const int64_t last = std::min(first + kBatch, a.k);
      const float* rows[kBatch];
      int64_t count = 0;
      for (int64_t n = first; n < last; ++n) {
        const int64_t j = index[n];
        if (j < 0 || j >= s.rows) continue;
        prefetch_next(bank, s.rows, index, n, a.k);
        const float* y = rows[count] = view_row(bank, j, converted + count * features);
        float bank_inverse = 1.0f, weight;
        if (infonce) {
          const float score = similarity(x, y, features, a.normalize, bank_inverse);
          weight = upstream * std::exp(log_probability(score));
        } else {
          weight = a.grad_similarity[row * a.k + n];
          if (a.normalize && a.grad_query) bank_inverse = inverse_norm(dot(y, y, features));
        }
        factor[count++] = weight * bank_inverse;
        if (weights) weights[n] = weight * inverse;
      }
      if (a.grad_query) combine(rows, factor, count, g, features);
    }
    if (a.grad_query) project(g, x, inverse, a.normalize, features, a.grad_query + row * features);
  }

  // Adds a block of queries to this thread's range of bank rows.
  void bank_rows(int64_t group, int64_t first, int64_t count, const float* weights, float* memory) const {
    const Shape& s = a.shape;
    const int64_t features = s.features, thread = thread_number();
    const int64_t low = s.rows * thread / threads_, high = s.rows * (thread + 1) / threads_;
    const Rows queries = group_rows(a.query, group, features);
    float* grad = a.grad_bank + group * s.rows * features;
    if (first == 0) std::memset(grad + low * features, 0, sizeof(float) * (high - low) * features);
    for (int64_t i = first; i < first + count; ++i) {
      const int64_t* index = a.index + (group * s.queries + i) * a.k;
      const float* x = view_row(queries, i, memory);
      for (int64_t n = 0; n < a.k; ++n)
        if (index[n] >= low && index[n] < high)
          axpy(weights[(i - first) * a.k + n], x, grad + index[n] * features, features);
    }
  }

  // From the gradient in the unit bank row to the one in the raw row.
  void bank_row(int64_t group, int64_t j, float* memory) const {
    const int64_t features = a.shape.features;
    float* grad = a.grad_bank + (group * a.shape.rows + j) * features;
    const float inverse = unit_row(group_rows(a.bank, group, features), j, true, memory);
    project(grad, memory, inverse, true, features, grad);
  }

  const GatherGradient& a;
  int64_t block_;
  int threads_;
};

}  // namespace

void gather(const Gather& a, Resources resources) {
  const Shape& s = a.shape;
  const int64_t features = s.features, total = s.groups * s.queries;
  const int threads = useful_threads(resources.threads, 1.0 * total * (a.k + 1) * features);
  Scratch scratch(threads, 3 * Cutter::size<float>(features) + Cutter::size<float>(a.k + 1));
#pragma omp parallel for schedule(dynamic, 4) num_threads(threads)
  for (int64_t row = 0; row < total; ++row) {
    const int64_t group = row / s.queries, i = row % s.queries;
    Cutter cut(scratch.thread(thread_number()));
    float *x = cut.take(features), *y = cut.take(features), *converted = cut.take(features);
    float* scores = cut.take(a.k + 1);
    const Rows bank = group_rows(a.bank, group, features);
    unit_row(group_rows(a.query, group, features), i, a.normalize, x);
    unit_row(group_rows(a.positive, group, features), i, a.normalize, y);
    const float positive = dot(x, y, features);
    float largest = positive, unused;
    int64_t count = 0;
    scores[count++] = positive;
    for (int64_t n = 0; n < a.k; ++n) {
      const int64_t j = a.index[row * a.k + n];
      if (j < 0 || j >= s.rows) continue;
      prefetch_next(bank, s.rows, a.index + row * a.k, n, a.k);
      const float score = similarity(x, view_row(bank, j, converted), features, a.normalize, unused);
      largest = score > largest ? score : largest;
      scores[count++] = score;
    }
    const float scale = static_cast<float>(kLog2e / a.temp);
    float total_exp = 0;
    vf lanes{};
    int64_t n = 0;
    for (; n + kWidth <= count; n += kWidth) lanes += exp2((load(scores + n) - set1(largest)) * set1(scale));
    total_exp = sum(lanes);
    for (; n < count; ++n) total_exp += std::exp2((scores[n] - largest) * scale);
    const double rest = std::log(static_cast<double>(total_exp));
    const double lse = largest / a.temp + rest;
    a.lse[row] = lse;
    a.loss[row] = static_cast<float>((static_cast<double>(largest) - positive) / a.temp + rest);
  }
}

void gather_gradient(const GatherGradient& args, Resources resources) { GradientPass(args, resources).run(); }

}  // namespace action::ACTION_ISA
