// Draws of negatives by a class relation, with Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as
// easy as 1, 2, 3", SC 2011).
#include "../params/relation_negatives.h"

#include <cstdint>

#include "../params/checks.h"
#include "parallel.h"
#include "variant.h"

namespace action::ACTION_ISA {
namespace {

struct Draws {
  int64_t groups, queries, rows, classes, k;
  const int64_t *query_labels, *thresholds, *class_start, *bank_rows;
  uint64_t seed;
  int64_t* index;  // [G, N, k]
};

struct Words {
  uint32_t w[4];
};

Words philox(Words counter, uint32_t key0, uint32_t key1) {
  for (int round = 0; round < 10; ++round) {
    uint64_t p0 = uint64_t{0xD2511F53} * counter.w[0];
    uint64_t p1 = uint64_t{0xCD9E8D57} * counter.w[2];
    counter = {{static_cast<uint32_t>(p1 >> 32) ^ counter.w[1] ^ key0, static_cast<uint32_t>(p1),
                static_cast<uint32_t>(p0 >> 32) ^ counter.w[3] ^ key1, static_cast<uint32_t>(p0)}};
    key0 += 0x9E3779B9;
    key1 += 0xBB67AE85;
  }
  return counter;
}

void draw(const Draws& a, int wanted_threads) {
  const uint32_t key0 = static_cast<uint32_t>(a.seed), key1 = static_cast<uint32_t>(a.seed >> 32);
  const int64_t total = a.groups * a.queries;
  [[maybe_unused]] const int threads = useful_threads(wanted_threads, 20.0 * total * a.k);  // without OpenMP
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t row = 0; row < total; ++row) {
    const int64_t group = row / a.queries, query = row % a.queries;
    const int64_t label = a.query_labels[row];
    const int64_t* start = a.class_start + group * (a.classes + 1);
    const int64_t* bank_rows = a.bank_rows + group * a.rows;
    int64_t* index = a.index + row * a.k;
    const bool known = label >= 0 && label < a.classes;
    const int64_t* threshold = known ? a.thresholds + (group * a.classes + label) * a.classes : nullptr;
    const uint64_t sum = known ? threshold[a.classes - 1] : 0;
    for (int64_t draw = 0; draw < a.k; ++draw) {
      if (sum == 0) {
        index[draw] = -1;
        continue;
      }
      Words word = philox(
          {{static_cast<uint32_t>(draw), static_cast<uint32_t>(query), static_cast<uint32_t>(group), 0}}, key0, key1);
      const int64_t target = static_cast<int64_t>((word.w[0] * sum) >> 32);
      int64_t v = 0;
      while (threshold[v] <= target) ++v;
      const uint64_t members = start[v + 1] - start[v];
      index[draw] = members ? bank_rows[start[v] + static_cast<int64_t>((word.w[1] * members) >> 32)] : -1;
    }
  }
}

}  // namespace

int32_t relation_negatives(const RelationNegativesParams& p) {
  Checks check(Device::cpu, p.query_labels);
  const int64_t g = check.size(p.index, "index", 0, 3), n = check.size(p.index, "index", 1, 3);
  const int64_t k = check.size(p.index, "index", 2, 3), c = check.size(p.thresholds, "thresholds", 2, 3);
  const int64_t m = check.size(p.rows, "rows", 1, 2);
  Draws draws{g, n, m, c, k, nullptr, nullptr, nullptr, nullptr, static_cast<uint64_t>(p.seed), nullptr};
  draws.query_labels = check.contiguous<int64_t>(p.query_labels, "query_labels", {g, n});
  draws.thresholds = check.contiguous<int64_t>(p.thresholds, "thresholds", {g, c, c});
  draws.class_start = check.contiguous<int64_t>(p.class_start, "class_start", {g, c + 1});
  draws.bank_rows = check.contiguous<int64_t>(p.rows, "rows", {g, m});
  draws.index = check.contiguous<int64_t>(p.index, "index", {g, n, k});
  if (check.passed()) run(p.threads, [&] { draw(draws, static_cast<int>(p.threads)); });
  return check.status();
}

}  // namespace action::ACTION_ISA
