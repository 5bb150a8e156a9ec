// Draws of negatives by a class relation, a thread per draw: the same integers on every backend.
#include "../params/relation_negatives.h"

#include "library.cuh"
#include "philox.cuh"
#include "splits.cuh"

namespace action {
namespace {

struct Relation {
  const int64_t* query_labels;  // [G, N]
  const int64_t* thresholds;    // [G, C, C]
  const int64_t* class_start;   // [G, C + 1]
  const int64_t* bank_rows;     // [G, M]
  int64_t* index;               // [G, N, k]
  int64_t queries, rows, classes, k, total;
  uint32_t key0, key1;
};

constexpr int kThreads = 128;

__global__ void __launch_bounds__(kThreads) draw(Relation p) {
  const int64_t entry = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (entry >= p.total) return;
  const int64_t draw = entry % p.k, line = entry / p.k, query = line % p.queries, group = line / p.queries;
  const int64_t label = p.query_labels[line];
  int64_t drawn = -1;
  if (label >= 0 && label < p.classes) {
    const int64_t* threshold = p.thresholds + (group * p.classes + label) * p.classes;
    const uint64_t sum = threshold[p.classes - 1];
    if (sum != 0) {
      const Words word =
          philox({{static_cast<uint32_t>(draw), static_cast<uint32_t>(query), static_cast<uint32_t>(group), 0}}, p.key0,
                 p.key1);
      const int64_t target = static_cast<int64_t>((word.w[0] * sum) >> 32);
      int64_t low = 0, high = p.classes - 1;  // the first class with a threshold above the target
      while (low < high) {
        const int64_t middle = (low + high) / 2;
        if (threshold[middle] > target) {
          high = middle;
        } else {
          low = middle + 1;
        }
      }
      const int64_t* start = p.class_start + group * (p.classes + 1) + low;
      const uint64_t members = start[1] - start[0];
      const int64_t place = start[0] + static_cast<int64_t>((word.w[1] * members) >> 32);
      if (members != 0) drawn = p.bank_rows[group * p.rows + place];
    }
  }
  p.index[entry] = drawn;
}

void relation_negatives(const RelationNegativesParams& p, Checks& check, Call& call) {
  const int64_t g = check.size(p.index, "index", 0, 3), n = check.size(p.index, "index", 1, 3);
  const int64_t k = check.size(p.index, "index", 2, 3), c = check.size(p.thresholds, "thresholds", 2, 3);
  const int64_t m = check.size(p.rows, "rows", 1, 2);
  const uint64_t seed = static_cast<uint64_t>(p.seed);
  const Relation all{check.contiguous<int64_t>(p.query_labels, "query_labels", {g, n}),
                     check.contiguous<int64_t>(p.thresholds, "thresholds", {g, c, c}),
                     check.contiguous<int64_t>(p.class_start, "class_start", {g, c + 1}),
                     check.contiguous<int64_t>(p.rows, "rows", {g, m}),
                     check.contiguous<int64_t>(p.index, "index", {g, n, k}),
                     n,
                     m,
                     c,
                     k,
                     g * n * k,
                     static_cast<uint32_t>(seed),
                     static_cast<uint32_t>(seed >> 32)};
  if (!check.passed()) return;
  call.queue.enqueue("draw", draw, ceil_div(all.total, kThreads), kThreads, 0, all);
}

}  // namespace

const Launcher kRelationNegatives = ACTION_OPERATOR(relation_negatives, RelationNegativesParams, query_labels);

}  // namespace action
