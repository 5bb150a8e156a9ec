// The gradient of similarities with the bank rows that an index names, which are read in place.
//
// In the bank gradient every thread owns a range of bank rows, scans the index list in order and adds what falls into
// its range, so that the order of a row's sum does not depend on the number of threads.
#include "indexed_rows.h"

#include <algorithm>
#include <cmath>

#include "subnormals.h"

namespace action::ACTION_ISA {
namespace {

constexpr int64_t kBatch = 16;  // bank rows between two uses of the same row

class GradientPass {
 public:
  GradientPass(const IndexedGradient& args, Resources resources) : a(args) {
    const Shape& s = a.shape;
    threads_ = useful_threads(resources.threads, 3.0 * s.groups * s.queries * (a.k + 1) * s.features);
    // Weights of a block of queries; the rest of the scratch is a few rows per thread.
    const int64_t entries = std::max<int64_t>(resources.scratch_bytes / 8 / (a.k + 1), threads_);
    block_ = a.bank_grad ? std::min(s.queries, entries) : s.queries;
  }

  void run() {
    const Shape& s = a.shape;
    Cutter measure;
    lay_out(measure);
    Scratch scratch(threads_, measure.used());
    std::unique_ptr<float[]> weights;
    if (a.bank_grad) weights.reset(new float[block_ * a.k]);
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
          if (a.bank_grad) {
            bank_rows(group, first, count, weights.get(), memory);
#pragma omp barrier
          }
        }
        if (a.bank_grad && a.normalize) {
#pragma omp for schedule(static)
          for (int64_t j = 0; j < s.rows; ++j) bank_row(group, j, memory);
        }
      }
    }
  }

 private:
  // A thread's scratch.
  struct Buffers {
    float *query, *positive, *gradient;  // [D]
    float* converted;                    // [kBatch, D] bank rows
    float* factor;                       // [kBatch]
  };
  Buffers lay_out(Cutter& cut) const {
    const int64_t features = a.shape.features;
    Buffers b;
    b.query = cut.take(features);
    b.positive = cut.take(features);
    b.gradient = cut.take(features);
    b.converted = cut.take(kBatch * features);
    b.factor = cut.take(kBatch);
    return b;
  }

  // Gradients of one query and its positive; leaves the weights w_j / |query| for the bank.
  void query(int64_t group, int64_t i, float* weights, float* memory) const {
    const Shape& s = a.shape;
    const int64_t features = s.features, row = group * s.queries + i;
    const Rows bank = group_rows(a.bank, group);
    Cutter cut(memory);
    const auto [x, y, g, converted, factor] = lay_out(cut);
    const bool infonce = a.grad_similarity == nullptr;
    const float inverse = unit_row(group_rows(a.query, group), i, a.normalize, x);
    std::memset(g, 0, sizeof(float) * features);

    const float scale = static_cast<float>(1.0 / a.temp);
    const float upstream = infonce ? a.grad_loss[row] * scale : 1.0f;
    const Reference lse(infonce ? a.lse[row] : 0.0, a.temp);
    auto log_probability = [&](float score) {
      return (score - lse.score) * scale + lse.rest * static_cast<float>(kLn2);
    };
    if (infonce) {
      const float positive_inverse = unit_row(group_rows(a.positive, group), i, a.normalize, y);
      const float weight = upstream * std::expm1(log_probability(dot(x, y, features)));
      axpy(weight, y, g, features);
      if (a.positive_grad) {
        float* grad = a.positive_grad + row * features;
        float* scaled = converted;  // free until the bank is read
        for (int64_t d = 0; d < features; ++d) scaled[d] = weight * x[d];
        project(scaled, y, positive_inverse, a.normalize, features, grad);
      }
    }
    if (!a.query_grad && !weights) return;

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
          if (a.normalize && a.query_grad) bank_inverse = inverse_norm(y, features);
        }
        factor[count++] = weight * bank_inverse;
        if (weights) weights[n] = weight * inverse;
      }
      if (a.query_grad) combine(rows, factor, count, g, features);
    }
    if (a.query_grad) project(g, x, inverse, a.normalize, features, a.query_grad + row * features);
  }

  // Adds a block of queries to this thread's range of bank rows.
  void bank_rows(int64_t group, int64_t first, int64_t count, const float* weights, float* memory) const {
    const Shape& s = a.shape;
    const int64_t features = s.features, thread = thread_number();
    const int64_t low = s.rows * thread / threads_, high = s.rows * (thread + 1) / threads_;
    const Rows queries = group_rows(a.query, group);
    float* grad = a.bank_grad + group * s.rows * features;
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
    float* grad = a.bank_grad + (group * a.shape.rows + j) * features;
    const float inverse = unit_row(group_rows(a.bank, group), j, true, memory);
    project(grad, memory, inverse, true, features, grad);
  }

  const IndexedGradient& a;
  int64_t block_;
  int threads_;
};

}  // namespace

void indexed_gradient(const IndexedGradient& args, Resources resources) { GradientPass(args, resources).run(); }

}  // namespace action::ACTION_ISA
