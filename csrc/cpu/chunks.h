// How a pass is cut into pieces of work, and the row norms that all pieces share.
#pragma once

#include <memory>

#include "parallel.h"
#include "rows.h"

namespace action::ACTION_ISA {

// A chunk is the panels that one thread takes through a sweep together: a stream tile is fetched, converted and packed
// once for all of them.
struct Chunks {
  int64_t panels = 1, per_group = 0, count = 0;

  Chunks() = default;

  // The most panels (up to 4) that leave every thread several chunks and stay within the scratch limit;
  // floats(panels) is the scratch of one thread.
  template <typename Floats>
  Chunks(int64_t groups, int64_t all_panels, int threads, int64_t scratch, Floats floats) {
    for (panels = all_panels < 4 ? all_panels : 4; panels > 1; --panels) {
      const int64_t chunks = groups * ((all_panels + panels - 1) / panels);
      if (floats(panels) <= scratch / 4 / threads && (threads == 1 || chunks >= 4 * threads)) break;
    }
    per_group = (all_panels + panels - 1) / panels;
    count = groups * per_group;
  }
};

// 1 / norm of every row of every group, if wanted.
class Inverses {
 public:
  // Memory for them.
  Inverses(const Tensor& x, bool wanted) : rows_(x.sizes[1]) {
    if (wanted) values_.reset(new float[x.sizes[0] * rows_]);
  }

  Inverses(const Tensor& x, bool wanted, int threads) : Inverses(x, wanted) {
    if (wanted) take_all(x, threads);
  }

  void take_all(const Tensor& x, int threads) {
    const int64_t total = x.sizes[0] * rows_, features = x.sizes[2];
    Scratch buffers(threads, features);
    float* values = values_.get();
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t i = 0; i < total; ++i) {
      const float* row = view_row(group_rows(x, i / rows_), i % rows_, buffers.thread(thread_number()));
      values[i] = inverse_norm(row, features);
    }
  }

  // Those of one group, or nullptr.
  float* group(int64_t g) const { return values_ ? values_.get() + g * rows_ : nullptr; }

 private:
  int64_t rows_;
  std::unique_ptr<float[]> values_;
};

}  // namespace action::ACTION_ISA
