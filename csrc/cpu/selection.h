// The k best scores of every lane of a panel, in one sweep. Order: larger score first, then lower index.
//
// A lane's buffer takes every score above its threshold; when it is full it keeps the k best and perhaps a few more,
// and the threshold rises to the best one left out. Scores arrive by ascending index and buffers keep their order, so
// that of equal scores the first stays.
#pragma once

#include <algorithm>
#include <cmath>

#include "tile.h"

namespace action {

// Sorts descending. (Compiled once: a standard template, compiled for each instruction set, could be linked from the
// wrong one.)
void sort_descending(int64_t* values, int64_t count);

namespace ACTION_ISA {

// An integer that sorts like the score; 0 and -0 are equal.
inline int32_t ordered(float score) {
  score += 0.0f;
  int32_t bits;
  std::memcpy(&bits, &score, 4);
  return bits ^ ((bits >> 31) & 0x7fffffff);
}

inline float score_of(int32_t key) {
  key ^= (key >> 31) & 0x7fffffff;
  float score;
  std::memcpy(&score, &key, 4);
  return score;
}

inline int64_t count_above(const float* scores, int64_t count, float bound) {
  const vf bounds = set1(bound);
  int64_t above = 0, i = 0;
  for (; i + kWidth <= count; i += kWidth) above += __builtin_popcount(lanes_above(load(scores + i), bounds));
  for (; i < count; ++i) above += scores[i] > bound;
  return above;
}

inline float mean_distance(const float* scores, int64_t count, float base) {
  const vf bases = set1(base);
  vf vectors{};
  float rest = 0.0f;
  int64_t i = 0;
  for (; i + kWidth <= count; i += kWidth) {
    const vf distance = load(scores + i) - bases;
    vectors += max(distance, -distance);
  }
  for (; i < count; ++i) rest += std::fabs(scores[i] - base);
  return (sum(vectors) + rest) / static_cast<float>(count);
}

struct Kept {
  int64_t count;
  float bound;  // a later score is among the k largest only if it exceeds this
};

// Keeps the `least` to `most` largest of `count` scores (least <= most < count) in their order, with their indices. No
// score is below `floor`; where that is -inf, all exceed it.
__attribute__((noinline)) inline Kept keep_largest(float* scores, int32_t* index, int64_t count, int64_t least,
                                                   int64_t most, float floor) {
  // Search for a bound that the right number of scores exceed: `least` or more exceed `low`, fewer exceed `high`. The
  // tail of a distribution falls off about exponentially, so a bound that n times too many scores exceed is too low by
  // log(n) times the mean distance from the floor. Where a few such guesses fail (equal scores, say) bisection ends the
  // search: there may be no such bound, and `high` ends as the score of rank `least`.
  constexpr int kGuesses = 6;
  const bool first = floor == -INFINITY;  // then assume that scores are centred at 0
  float guess = first ? 0.0f : floor;
  const float scale = mean_distance(scores, count, guess), wanted = 0.5f * static_cast<float>(least + most);
  int64_t low = ordered(floor) - !first, high = ordered(INFINITY), above = first ? least : count;
  int64_t above_low = count, above_high = 0;
  for (int step = 0; high - low > 1 && above_low > most; ++step) {
    int64_t middle = low + (high - low) / 2;
    guess += scale * std::log((static_cast<float>(above) + 0.5f) / wanted);
    if (step < kGuesses && guess > score_of(static_cast<int32_t>(low)) && guess < score_of(static_cast<int32_t>(high)))
      middle = ordered(guess);
    above = count_above(scores, count, score_of(static_cast<int32_t>(middle)));
    if (above < least) {
      high = middle;
      above_high = above;
    } else {
      low = middle;
      above_low = above;
    }
  }
  int64_t kept = 0;
  if (above_low <= most) {
    const float bound = score_of(static_cast<int32_t>(low));
    const vf bounds = set1(bound);
    int64_t i = 0;
    for (; i + kWidth <= count; i += kWidth) {  // what is stored has been read: kept <= i
      const vf score = load(scores + i);
      const vi row = load(index + i);
      const uint32_t bits = lanes_above(score, bounds);
      store_lanes(scores + kept, score, bits);
      kept += store_lanes(index + kept, row, bits);
    }
    for (; i < count; ++i) {
      const float score = scores[i];
      const int32_t row = index[i];
      scores[kept] = score;
      index[kept] = row;
      kept += score > bound;
    }
    return {kept, bound};
  }
  const float bound = score_of(static_cast<int32_t>(high));
  int64_t ties = least - above_high;  // of the scores equal to the bound, the first ones
  for (int64_t i = 0; i < count; ++i) {
    const float score = scores[i];
    const int32_t row = index[i];
    const bool tie = score == bound && ties > 0;
    ties -= tie;
    scores[kept] = score;
    index[kept] = row;
    kept += score > bound || tie;
  }
  return {kept, bound};
}

struct BankLabels {
  const int64_t* label;  // nullptr: every row may be selected
  bool fit;              // every label of bank and queries fits 32 bits
};

template <int NV>
class Selection {
  static constexpr int L = kLanes<NV>;
  static constexpr int64_t kBatch = 64;  // bank rows compared with the same thresholds

 public:
  // Entries of a lane's buffer for the k best of `rows` scores: a buffer that is almost full must have room for one
  // more batch.
  static int64_t entries(int64_t k, int64_t rows) { return std::min(full(k) + kBatch, rows); }

  // `scores` and `index` hold L * entries each. `labels` of the panel's `count` queries, or nullptr.
  void start(float* scores, int32_t* index, int64_t entries, int64_t k, const int64_t* labels, int64_t count) {
    scores_ = scores;
    index_ = index;
    entries_ = entries;
    k_ = k;
    for (int lane = 0; lane < L; ++lane) {
      end_[lane] = lane * entries;
      full_[lane] = lane * entries + full(k);
      threshold_[lane] = lane < count ? -INFINITY : INFINITY;
      label_[lane] = lane < count && labels ? labels[lane] : -1;
      short_label_[lane] = static_cast<int32_t>(label_[lane]);
      lane_[lane] = lane;
    }
  }

  // Raises the thresholds to bounds that k of the scores exceed, before any score is taken. Laid out as for take().
  //
  // The maxima of short runs of rows are fewer than the scores, and a bound that k of them exceed is one. Each lane's
  // is found by bisection, between the least and the largest maximum.
  __attribute__((noinline)) void look(const float* scores, int64_t stride, int64_t first, int64_t count,
                                      BankLabels bank) {
    if (bank.label && !bank.fit) return;
    const int64_t run = std::max(count / std::max<int64_t>(2 * k_, kRuns / 2), (count + kRuns - 1) / kRuns),
                  runs = count / run;
    float maxima[kRuns * L];
    const vf lowest = set1(-INFINITY);
    for (int v = 0; v < NV; ++v) {
      const vi lane_label = load(short_label_ + v * kWidth);
      vf low = set1(INFINITY), high = lowest;
      for (int64_t i = 0; i < runs; ++i) {
        vf largest = lowest;
        for (int64_t j = i * run; j < (i + 1) * run; ++j) {
          vf score = load(scores + j * stride + v * kWidth);
          if (bank.label) {
            const int64_t label = bank.label[first + j];
            if (label < 0) continue;
            score = lane_label == set1(static_cast<int32_t>(label)) ? lowest : score;
          }
          largest = max(largest, score);
        }
        store(maxima + i * L + v * kWidth, largest);
        high = max(high, largest);
        low = ((largest > lowest) & (largest < low)) ? largest : low;
      }
      vf bound = lowest;
      for (int step = 0; step < kSteps; ++step) {
        const vf middle = 0.5f * low + 0.5f * high;
        vi above{};
        for (int64_t i = 0; i < runs; ++i) above = plus_above(above, load(maxima + i * L + v * kWidth), middle);
        const vi enough = above >= set1(static_cast<int32_t>(k_));
        bound = enough ? middle : bound;
        low = enough ? middle : low;
        high = enough ? high : middle;
      }
      float* threshold = threshold_ + v * kWidth;
      store(threshold, max(load(threshold), bound));
    }
  }

  // scores[j * stride + lane] belongs to bank row first + j.
  __attribute__((noinline)) void take(const float* scores, int64_t stride, int64_t first, int64_t count,
                                      BankLabels bank) {
    for (int64_t j = 0; j < count; j += kBatch) {
      const float* batch = scores + j * stride;
      const int64_t rows = std::min(count - j, kBatch);
      const int64_t* label = bank.label + first + j;
      if (!bank.label)
        take_batch<Labels::none>(batch, stride, rows, label, first + j);
      else if (bank.fit)
        take_batch<Labels::fit>(batch, stride, rows, label, first + j);
      else
        take_batch<Labels::wide>(batch, stride, rows, label, first + j);
      for (int lane = 0; lane < L; ++lane)
        if (end_[lane] >= full_[lane]) make_room(lane);
    }
  }

  // Adds what another selection found among bank rows of higher index.
  void take_over(const Selection& later) {
    for (int lane = 0; lane < L; ++lane) {
      for (int64_t i = lane * entries_; i < later.end_[lane]; ++i) {
        if (!(later.scores_[i] > threshold_[lane])) continue;
        append(lane, later.scores_[i], later.index_[i]);
        if (end_[lane] >= full_[lane]) make_room(lane);
      }
    }
  }

  // Writes a lane's k best in order, -inf and -1 where there are fewer.
  __attribute__((noinline)) void finish(int lane, float* similarity, int64_t* index) {
    const int64_t start = lane * entries_;
    const int64_t spare = k_ + kSpare <= kShort ? kSpare : 0;
    if (end_[lane] - start > k_ + spare) shrink(lane, k_ + spare / 2);
    const float* scores = scores_ + start;
    const int32_t* rows = index_ + start;
    const int64_t count = end_[lane] - start;
    if (count <= kShort) {
      constexpr int kTogether = 6;  // vectors in registers that share a score to be compared with
      float copy[kShort + kTogether * kWidth];
      int32_t rank[kShort + kTogether * kWidth];
      std::memcpy(copy, scores, sizeof(float) * count);
      for (int i = 0; i < kTogether * kWidth; ++i) copy[count + i] = 0.0f;
      for (int64_t i = 0; i < count; i += kTogether * kWidth) {
        vf block[kTogether];
        vi larger[kTogether] = {};
#pragma GCC unroll 8
        for (int v = 0; v < kTogether; ++v) block[v] = load(copy + i + v * kWidth);
        for (int64_t j = 0; j < count; ++j) {
          const vf other = set1(copy[j]);
#pragma GCC unroll 8
          for (int v = 0; v < kTogether; ++v) larger[v] = plus_above(larger[v], other, block[v]);
        }
#pragma GCC unroll 8
        for (int v = 0; v < kTogether; ++v) store(rank + i + v * kWidth, larger[v]);
      }
      uint8_t equal[kShort] = {};  // scores already placed at this rank
      float placed[kShort];
      int32_t placed_row[kShort];
      for (int64_t i = 0; i < count; ++i) {
        const int place = rank[i] + equal[rank[i]]++;
        placed[place] = scores[i];
        placed_row[place] = rows[i];
      }
      const int64_t found = std::min(count, k_);
      std::memcpy(similarity, placed, sizeof(float) * found);
      for (int64_t i = 0; i < found; ++i) index[i] = placed_row[i];
    } else {
      for (int64_t i = 0; i < count; ++i)
        index[i] = static_cast<int64_t>(static_cast<uint64_t>(static_cast<uint32_t>(ordered(scores[i]))) << 32 |
                                        (0xffffffffu - static_cast<uint32_t>(rows[i])));
      sort_descending(index, count);
      for (int64_t i = 0; i < count; ++i) {
        similarity[i] = score_of(static_cast<int32_t>(index[i] >> 32));
        index[i] = 0xffffffffu - static_cast<uint32_t>(index[i]);
      }
    }
    for (int64_t i = count; i < k_; ++i) {
      similarity[i] = -INFINITY;
      index[i] = -1;
    }
  }

 private:
  static constexpr int64_t kShort = 192;  // up to here counting ranks is faster than sorting
  static constexpr int64_t kRuns = 256;   // whose maxima are looked at
  static constexpr int kSteps = 8;        // of a bisection
  static constexpr int64_t kSpare = 16;   // sorting this many more than k is cheaper than a search

  enum class Labels { none, fit, wide };

  // The number of scores at which a lane's buffer is shrunk.
  static int64_t full(int64_t k) { return k + std::max<int64_t>(k, 64); }

  // Takes the scores that exceed their lane's threshold and that its label does not exclude: lists their places, then
  // goes through the list. No branch depends on a comparison of scores, which could not be predicted.
  template <Labels labels>
  void take_batch(const float* scores, int64_t stride, int64_t rows, const int64_t* label, int64_t first) {
    vf threshold[NV];
    vi lane_label[NV], place[NV];  // row * L + lane
    for (int v = 0; v < NV; ++v) {
      threshold[v] = load(threshold_ + v * kWidth);
      lane_label[v] = load(short_label_ + v * kWidth);
      place[v] = load(lane_ + v * kWidth);
    }
    int32_t list[kBatch * L + kWidth];
    int64_t taken = 0;
    for (int64_t r = 0; r < rows; ++r, next_row(place)) {
      if (labels != Labels::none && label[r] < 0) continue;
      const vi row_label = set1(labels == Labels::fit ? static_cast<int32_t>(label[r]) : 0);
#pragma GCC unroll 4
      for (int v = 0; v < NV; ++v) {
        vf score = load(scores + r * stride + v * kWidth);
        if (labels == Labels::fit) score = lane_label[v] == row_label ? set1(-INFINITY) : score;
        uint32_t bits = lanes_above(score, threshold[v]);
        if (labels == Labels::wide)
          for (int i = 0; i < kWidth; ++i)
            if (label_[v * kWidth + i] == label[r]) bits &= ~(1u << i);
        taken += store_lanes(list + taken, place[v], bits);
      }
    }
    for (int64_t i = 0; i < taken; ++i) {
      const uint32_t place = list[i], j = place / L, l = place % L;
      append(l, scores[j * stride + l], static_cast<int32_t>(first + j));
    }
  }

  static void next_row(vi (&place)[NV]) {
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v) place[v] += L;
  }

  void append(int64_t lane, float score, int32_t index) {
    const int64_t at = end_[lane]++;
    scores_[at] = score;
    index_[at] = index;
  }

  // Shrinks a full buffer to a size that is quickly found and leaves ample room.
  void make_room(int lane) { shrink(lane, k_ + (full(k_) - k_) / 4); }

  // Keeps the best k, and at most `most`.
  void shrink(int lane, int64_t most) {
    const int64_t start = lane * entries_;
    const Kept kept = keep_largest(scores_ + start, index_ + start, end_[lane] - start, k_, most, threshold_[lane]);
    threshold_[lane] = kept.bound;
    end_[lane] = start + kept.count;
  }

  alignas(64) float threshold_[L];
  alignas(64) int32_t short_label_[L], lane_[L];
  int64_t label_[L], end_[L], full_[L];
  float* scores_;   // [L][entries]
  int32_t* index_;  // [L][entries]
  int64_t entries_, k_;
};

}  // namespace ACTION_ISA
}  // namespace action
