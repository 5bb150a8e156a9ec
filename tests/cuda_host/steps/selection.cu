// Single steps of a selection, to be called from tests with memory of their own.
#include "passes.cuh"
#include "prepare.cuh"

using namespace action;

/// Bank rows [groups, rows, features] and their labels as the passes keep them.
ACTION_EXPORT int check_placed_rows(const float* x, const int64_t* labels, int groups, int rows, int features,
                                    int tiles, int block, float* data, int width, float* scale, int scale_rows,
                                    float* narrow_labels) {
  Prepare all{};
  RowSet& set = all.sets[2];
  set.x = {x, int64_t{rows} * features, features, 1};
  set.data = data;
  set.scale = scale;
  set.placement = {static_cast<uint32_t>(tiles), static_cast<uint32_t>(block)};
  set.labels = labels;
  set.narrow_labels = narrow_labels;
  set.rows = rows;
  set.total = int64_t{groups} * rows;
  set.scale_rows = scale_rows;
  set.dtype = Dtype::float32;
  all.features = features;
  all.width = width;
  all.normalize = true;
  Queue queue(nullptr, false);
  prepare(queue, all, Dtype::float32);
  return queue.status();
}

/// Limits from the group maxima [total, line] of unit rows.
ACTION_EXPORT int check_limits(const float* maxima, const int64_t* labels, int total, int line, int k, int error_bits,
                               float* limits, int* found) {
  Limits all{};
  all.maxima = maxima;
  all.query_labels = labels;
  all.limits = limits;
  all.found = found;
  all.total = all.queries = total;
  all.line = line;
  all.k = k;
  all.error = 1.0f / static_cast<float>(1 << error_bits);
  Queue queue(nullptr, false);
  merge_and_limit(queue, {}, all);
  return queue.status();
}
