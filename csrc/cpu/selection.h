// The k best scores of every lane of a panel, in one sweep. Order: larger score first, then lower index.
//
// A lane's buffer takes every score above its threshold; when it is full it keeps the k best, give or take a few, and
// the threshold rises to the best one left out. Scores arrive by ascending index and buffers keep their order, so that
// of equal scores the first stays.
#pragma once

#include <cmath>

#include "tile.h"

namespace action {

// Sorts descending. (Compiled once: no instruction set may leak into the others through a standard template.)
void sort_descending(int64_t* values, int64_t count);

namespace ACTION_ISA {

// Integer with the order of the score; 0 and -0 are equal.
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

inline int64_t count_above(const int32_t* keys, int64_t count, int32_t bound) {
  int32_t above = 0;
  for (int64_t i = 0; i < count; ++i) above += keys[i] > bound;
  return above;
}

struct Kept {
  int64_t count;
  int32_t bound;  // a later key is among the k largest only if it exceeds this
};

// Keeps the `least` to `most` largest of `count` keys (least <= most < count) in their order, with their indices.
// At least `least` keys must reach `floor`.
__attribute__((noinline)) inline Kept keep_largest(int32_t* keys, int32_t* index, int64_t count, int64_t least,
                                                   int64_t most, int32_t floor) {
  int32_t top = floor;
  for (int64_t i = 0; i < count; ++i) top = keys[i] > top ? keys[i] : top;
  // Search for a bound that so many keys exceed: `least` or more exceed `low`, fewer exceed `high`. Interpolation and
  // bisection take turns; where keys are equal there may be none, and `high` ends as the key of rank `least`.
  const int64_t wanted = (least + most) / 2;
  int64_t low = static_cast<int64_t>(floor) - 1, high = top, above_low = count, above_high = 0;
  for (bool bisect = false; high - low > 1 && above_low > most; bisect = !bisect) {
    const int64_t step = bisect ? (high - low) / 2 : (high - low) * (above_low - wanted) / (above_low - above_high);
    const int64_t middle = low + (step < 1 ? 1 : step > high - low - 1 ? high - low - 1 : step);
    const int64_t above = count_above(keys, count, static_cast<int32_t>(middle));
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
    const int32_t bound = static_cast<int32_t>(low);
    const vi bounds = set1(bound);
    int64_t i = 0;
    for (; i + kWidth <= count; i += kWidth) {  // what is stored has been read: kept <= i
      const vi key = load(keys + i), row = load(index + i);
      const uint32_t bits = lanes_above(key, bounds);
      store_lanes(keys + kept, key, bits);
      kept += store_lanes(index + kept, row, bits);
    }
    for (; i < count; ++i) {
      const int32_t key = keys[i], row = index[i];
      keys[kept] = key;
      index[kept] = row;
      kept += key > bound;
    }
    return {kept, bound};
  }
  const int32_t bound = static_cast<int32_t>(high);
  int64_t ties = least - above_high;  // of the keys equal to the bound, the first ones
  for (int64_t i = 0; i < count; ++i) {
    const int32_t key = keys[i], row = index[i];
    const bool tie = key == bound && ties > 0;
    ties -= tie;
    keys[kept] = key;
    index[kept] = row;
    kept += key > bound || tie;
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

 public:
  // Entries of a lane's buffer for the k best of `rows` scores.
  static int64_t entries(int64_t k, int64_t rows) {
    const int64_t wanted = k + (k > 64 ? k : 64);
    return wanted < rows ? wanted : rows;
  }

  // `buffer` holds 2 * L * entries. `labels` of the panel's `count` queries, or nullptr.
  void start(int32_t* buffer, int64_t entries, int64_t k, const int64_t* labels, int64_t count) {
    keys_ = buffer;
    index_ = buffer + L * entries;
    entries_ = entries;
    k_ = k;
    for (int lane = 0; lane < L; ++lane) {
      size_[lane] = 0;
      threshold_[lane] = lane < count ? -INFINITY : INFINITY;
      label_[lane] = lane < count && labels ? labels[lane] : -1;
      short_label_[lane] = static_cast<int32_t>(label_[lane]);
    }
  }

  // scores[j * stride + lane] belongs to bank row first + j.
  __attribute__((noinline)) void take(const float* scores, int64_t stride, int64_t first, int64_t count, BankLabels bank) {
    constexpr int64_t R = 64 / L;  // rows whose comparisons fill one word
    vf threshold[NV];
    for (int v = 0; v < NV; ++v) threshold[v] = load(threshold_ + v * kWidth);
    for (int64_t j = 0; j < count; j += R) {
      const int64_t rows = count - j < R ? count - j : R;
      uint64_t hits = 0;
      if (rows == R) {
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) hits |= above(scores + (j + r) * stride, threshold) << (r * L);
      } else {
        for (int r = 0; r < rows; ++r) hits |= above(scores + (j + r) * stride, threshold) << (r * L);
      }
      if (hits == 0) continue;
      if (bank.label)
        for (int r = 0; r < rows; ++r) hits &= ~(excluded(bank.label[first + j + r], bank.fit) << (r * L));
      bool risen = false;
      for (; hits; hits &= hits - 1) {
        const int bit = __builtin_ctzll(hits), lane = bit % L, row = bit / L;
        risen |= put(lane, ordered(scores[(j + row) * stride + lane]), static_cast<int32_t>(first + j + row));
      }
      if (risen)
        for (int v = 0; v < NV; ++v) threshold[v] = load(threshold_ + v * kWidth);
    }
  }

  // Adds what another selection found among bank rows of higher index.
  void take_over(const Selection& later) {
    for (int lane = 0; lane < L; ++lane)
      for (int64_t i = lane * entries_; i < lane * entries_ + later.size_[lane]; ++i)
        if (later.keys_[i] > ordered(threshold_[lane])) put(lane, later.keys_[i], later.index_[i]);
  }

  // Writes a lane's k best in order, -inf and -1 where there are fewer.
  __attribute__((noinline)) void finish(int lane, float* similarity, int64_t* index) {
    if (size_[lane] > k_) shrink(lane, k_);
    const int64_t count = size_[lane];
    const int32_t *keys = keys_ + lane * entries_, *rows = index_ + lane * entries_;
    if (count <= kShort) {
      uint8_t equal[kShort] = {};  // keys already placed at this rank
      for (int64_t i = 0; i < count; ++i) {
        int32_t rank = 0;
        for (int64_t j = 0; j < count; ++j) rank += keys[j] > keys[i];
        rank += equal[rank]++;
        similarity[rank] = score_of(keys[i]);
        index[rank] = rows[i];
      }
    } else {
      for (int64_t i = 0; i < count; ++i)
        index[i] = static_cast<int64_t>(static_cast<uint64_t>(static_cast<uint32_t>(keys[i])) << 32 |
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

  static uint64_t above(const float* row, const vf* threshold) {
    uint64_t hits = 0;
#pragma GCC unroll 4
    for (int v = 0; v < NV; ++v)
      hits |= static_cast<uint64_t>(lanes_above(load(row + v * kWidth), threshold[v])) << (v * kWidth);
    return hits;
  }

  // Lanes that may not select a bank row of this label.
  uint64_t excluded(int64_t label, bool fit) const {
    uint64_t lanes = 0;
    if (label < 0) return ~uint64_t{0} >> (64 - L);
    if (fit) {
      const vi wanted = set1(static_cast<int32_t>(label));
      for (int v = 0; v < NV; ++v)
        lanes |= static_cast<uint64_t>(lanes_equal(load(short_label_ + v * kWidth), wanted)) << (v * kWidth);
    } else {
      for (int lane = 0; lane < L; ++lane) lanes |= static_cast<uint64_t>(label_[lane] == label) << lane;
    }
    return lanes;
  }

  // Whether the threshold has risen.
  bool put(int lane, int32_t key, int32_t index) {
    const int64_t at = lane * entries_ + size_[lane]++;
    keys_[at] = key;
    index_[at] = index;
    if (size_[lane] < entries_ || entries_ <= k_) return false;
    shrink(lane, k_ + (entries_ - k_) / 4);
    return true;
  }

  // Leaves the k to `most` best.
  void shrink(int lane, int64_t most) {
    // k scores reach the threshold, once there is one.
    const int32_t floor = ordered(threshold_[lane]);
    int32_t *keys = keys_ + lane * entries_, *index = index_ + lane * entries_;
    const Kept kept = keep_largest(keys, index, size_[lane], k_, most, floor);
    threshold_[lane] = score_of(kept.bound);
    size_[lane] = kept.count;
  }

  alignas(64) float threshold_[L];
  alignas(64) int32_t short_label_[L];
  int64_t label_[L], size_[L];
  int32_t *keys_, *index_;  // [L][entries]
  int64_t entries_, k_;
};

}  // namespace ACTION_ISA
}  // namespace action
