// Draws of negatives by a class relation, a thread per draw: the same integers on every backend.
#include "launch.cuh"
#include "philox.cuh"

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

__global__ void __launch_bounds__(kThreads) relation_negatives(Relation p) {
  const int64_t entry = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (entry >= p.total) return;
  const int64_t draw = entry % p.k, line = entry / p.k, query = line % p.queries, group = line / p.queries;
  const int64_t label = p.query_labels[line];
  int64_t drawn = -1;
  if (label >= 0 && label < p.classes) {
    const int64_t* threshold = p.thresholds + (group * p.classes + label) * p.classes;
    const uint64_t sum = threshold[p.classes - 1];
    if (sum != 0) {
      const Words word = philox({{static_cast<uint32_t>(draw), static_cast<uint32_t>(query),
                                  static_cast<uint32_t>(group), 0}}, p.key0, p.key1);
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

}  // namespace
}  // namespace action

using namespace action;

ACTION_EXPORT int action_relation_negatives(const int64_t* query_labels, const int64_t* thresholds,
                                            const int64_t* class_start, const int64_t* bank_rows, int64_t* index,
                                            int64_t groups, int64_t queries, int64_t rows, int64_t classes, int64_t k,
                                            uint64_t seed, void* stream) {
  const Relation p{query_labels, thresholds, class_start, bank_rows, index, queries, rows, classes, k,
                   groups * queries * k, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  const int64_t blocks = (p.total + kThreads - 1) / kThreads;
  return launch(relation_negatives, static_cast<unsigned>(blocks), kThreads, 0, stream, p);
}
