// The k largest similarities of a row, exactly: a buffer of candidates per row, cleared by bisection. Work of one warp.
//
// A candidate is a 64-bit key: the bits of its similarity, put into order, above its inverted row number. Keys are
// unique, and the larger key is the better candidate: more similar, or equally similar and earlier in the bank. Only
// candidates that beat the row's threshold enter the buffer; when it is full, bisection finds a key that at least k and
// at most `limit` of them reach, those stay, and that key's similarity is the new threshold. A tile without a candidate
// costs its comparisons and a vote. Buffers are in global memory (their hot parts in the caches), so k is not limited.
//
// Where several blocks work on splits of one bank, each would collect k candidates of its own, and more until its
// threshold is tight. So after 1, 2, 4... tiles each publishes the similarity that k / num_splits of its candidates
// reach, its floor: the lowest floor is reached by at least k candidates in all. Floors only rise, so a stale one does
// no harm.
#pragma once

#include "products.cuh"

namespace action {

constexpr int64_t kEmptyKey = INT64_MIN;

/// The bits of a float32 as an integer that sorts the same way.
__device__ inline int ordered(float x) {
  const int bits = __float_as_int(x == 0.0f ? 0.0f : x);  // -0 and 0 are a tie
  return bits ^ ((bits >> 31) & 0x7FFFFFFF);
}
__device__ inline float from_ordered(int x) { return __int_as_float(x ^ ((x >> 31) & 0x7FFFFFFF)); }

__device__ inline int64_t make_key(float similarity, int64_t index) {
  return static_cast<int64_t>(static_cast<uint64_t>(static_cast<uint32_t>(ordered(similarity))) << 32 |
                              (0xFFFFFFFFu - static_cast<uint32_t>(index)));
}
__device__ inline int high_word(int64_t key) { return static_cast<int>(key >> 32); }
__device__ inline float key_similarity(int64_t key) { return from_ordered(high_word(key)); }
__device__ inline int64_t key_index(int64_t key) { return 0xFFFFFFFFu - static_cast<uint32_t>(key); }

struct Kept {
  int count;
  float threshold;  // what a later candidate has to exceed
};

/// v[i] for an index that is not known in advance, by selects: registers have no addresses.
template <int N>
__device__ __forceinline__ float pick(const float (&v)[N], int i) {
  if constexpr (N == 1) {
    return v[0];
  } else {
    float half[N / 2];
#pragma unroll
    for (int j = 0; j < N / 2; ++j) half[j] = i & 1 ? v[2 * j + 1] : v[2 * j];
    return pick(half, i >> 1);
  }
}

/// A key that at least k and at most `limit` of the `count` keys reach or exceed. Needs count > limit.
__device__ inline int64_t bisect(const int64_t* keys, int count, int k, int limit) {
  const int lane = lane_id();
  int smallest = INT32_MAX, largest = INT32_MIN;
  for (int i = lane; i < count; i += 32) {
    const int word = high_word(keys[i]);
    smallest = smallest < word ? smallest : word;
    largest = largest > word ? largest : word;
  }
  int reach = count;  // keys that reach `low`
  int64_t low = static_cast<int64_t>(__reduce_min_sync(kAllLanes, smallest)) * (int64_t{1} << 32);
  int64_t high = (static_cast<int64_t>(__reduce_max_sync(kAllLanes, largest)) + 1) * (int64_t{1} << 32);  // too high
  while (reach > limit) {
    const int64_t middle = (low >> 1) + (high >> 1) + (low & high & 1);
    int above = 0;
    for (int i = lane; i < count; i += 32) above += keys[i] >= middle;
    above = __reduce_add_sync(kAllLanes, above);
    if (above >= k) {
      low = middle;
      reach = above;
    } else {
      high = middle;
    }
  }
  return low;
}

/// Moves those of `count` keys that reach `low` to the front of `target`, which may be where they are; how many.
__device__ inline int keep_from(const int64_t* keys, int count, int64_t* target, int64_t low) {
  const int lane = lane_id();
  int kept = 0;
  for (int first = 0; first < count; first += 32) {
    const int64_t key = first + lane < count ? keys[first + lane] : kEmptyKey;
    const bool keep = first + lane < count && key >= low;
    const unsigned keepers = __ballot_sync(kAllLanes, keep);
    __syncwarp();  // all have read before any writes
    if (keep) target[kept + __popc(keepers & ((1u << lane) - 1))] = key;
    kept += __popc(keepers);
  }
  __syncwarp();
  return kept;
}

/// Moves k to `limit` of the best of `count` keys to the front of `target`, which may be where they are; all of them if
/// there are no more than `limit`. With fewer than k, `threshold` stays.
__device__ inline Kept keep_best(const int64_t* keys, int count, int64_t* target, int k, int limit, float threshold) {
  const int64_t low = count > limit ? bisect(keys, count, k, limit) : kEmptyKey;
  const int kept = keep_from(keys, count, target, low);
  if (count > limit) threshold = fmaxf(threshold, key_similarity(low));
  return {kept, threshold};
}

/// The candidates of a warp's 16 rows.
template <class Math>
struct Selection {
  using Block = Scores<Math>;

  /// Where a warp's part of the arrays begins. In shared memory: registers are scarcer than loads.
  struct Places {
    int64_t buffer;        // its [16, capacity]
    int64_t bank_labels;   // those of its group
    int64_t query_labels;  // those of its 16 rows
    int64_t floors;        // its [16, num_splits]
  };

  int64_t* buffers;             // of all warps
  const int64_t* bank_labels;   // all, or null
  const int64_t* query_labels;  // all
  int* all_floors;              // ordered bits of a similarity that `quota` candidates of a split reach
  int k, limit, capacity;
  int* counts;    // [16] in shared memory, as the next
  float* limits;  // [16] thresholds
  Places* places;
  float threshold[Block::kRows];

  static constexpr int kShared = kWarpRows * (sizeof(int) + sizeof(float)) + 32;  // bytes a warp

  /// Before a walk. Lane i < 16 tells whether row i is `wanted`: it exists, and is to be selected for.
  __device__ void start(char* shared, const Places& its, bool wanted) {
    counts = reinterpret_cast<int*>(shared);
    limits = reinterpret_cast<float*>(shared) + kWarpRows;
    places = reinterpret_cast<Places*>(limits + kWarpRows);
    __syncwarp();
    if (lane_id() == 0) *places = its;
    if (lane_id() < kWarpRows) {
      counts[lane_id()] = 0;
      limits[lane_id()] = wanted ? -INFINITY : INFINITY;
    }
    __syncwarp();
    reload();
  }

  /// Later tiles lose ties, so that only a larger similarity than the k-th best can enter.
  __device__ void take(Block& s, int64_t start, int64_t end) {
    unsigned better = 0;
#pragma unroll
    for (int i = 0; i < Block::kRows * Block::kColumns; ++i) {
      better |= static_cast<unsigned>(s.v[i] > threshold[Block::r_of(i)]) << i;
    }
    if (!__any_sync(kAllLanes, better != 0)) return;
    int64_t* buffer = buffers + places->buffer;
    const int64_t label_place = places->bank_labels + start, own_place = places->query_labels;
    // Each lane goes through its own: as many turns as the lane with the most has candidates.
#pragma unroll 1
    for (; better; better &= better - 1) {
      const int i = __ffs(better) - 1, row = Block::row(Block::r_of(i));
      const int place = Block::column(Block::c_of(i));
      const int64_t column = start + place;
      bool eligible = column < end;
      if (bank_labels && eligible) {
        const int64_t label = bank_labels[label_place + place];
        eligible = label >= 0 && label != query_labels[own_place + row];
      }
      if (eligible) {
        const int slot = atomicAdd(counts + row, 1);
        buffer[int64_t{row} * capacity + slot] = make_key(pick(s.v, i), column);
      }
    }
    __syncwarp();
    unsigned full = __ballot_sync(kAllLanes, counts[lane_id() % kWarpRows] > capacity - kBlock) & 0xFFFF;
    if (full == 0) return;
    for (; full; full &= full - 1) {
      const int row = __ffs(full) - 1;
      int64_t* keys = buffer + int64_t{row} * capacity;
      const Kept kept = keep_best(keys, counts[row], keys, k, limit, limits[row]);
      if (lane_id() == 0) {
        counts[row] = kept.count;
        limits[row] = kept.threshold;
      }
    }
    __syncwarp();
    reload();
  }

  /// Tells the other num_splits what this one has found for each wanted row, and learns from them. `quota` is
  /// k / num_splits, rounded up.
  __device__ void exchange(int split, int num_splits, int quota, unsigned wanted) {
    __syncwarp();  // all have read their thresholds before any is raised
#pragma unroll 1
    for (; wanted; wanted &= wanted - 1) {
      const int row = __ffs(wanted) - 1;
      int* floors = all_floors + places->floors + int64_t{row} * num_splits;
      const int64_t* keys = buffers + places->buffer + int64_t{row} * capacity;
      const int count = counts[row], slack = quota + quota / 4;
      if (count > slack) {
        const int floor = high_word(bisect(keys, count, quota, slack));
        if (lane_id() == 0) atomicMax(floors + split, floor);
      }
      int lowest = INT32_MAX;
      for (int i = lane_id(); i < num_splits; i += 32) {
        const int floor = atomicMax(floors + i, INT32_MIN);  // reads it
        lowest = lowest < floor ? lowest : floor;
      }
      lowest = __reduce_min_sync(kAllLanes, lowest);
      // A candidate that equals it may win its tie; two steps below, since 0 and -0 are one number.
      if (lane_id() == 0 && lowest > INT32_MIN) limits[row] = fmaxf(limits[row], from_ordered(lowest - 2));
    }
    __syncwarp();
    reload();
  }

  /// After a walk: the best k keys of each wanted row i, a bit of `wanted`, go to target + i * pitch, behind them empty
  /// ones.
  __device__ void finish(int64_t* target, int64_t pitch, unsigned wanted) {
    __syncwarp();
    for (; wanted; wanted &= wanted - 1) {
      const int row = __ffs(wanted) - 1;
      int64_t* out = target + row * pitch;
      const int64_t* keys = buffers + places->buffer + int64_t{row} * capacity;
      const Kept kept = keep_best(keys, counts[row], out, k, k, limits[row]);
      for (int i = kept.count + lane_id(); i < k; i += 32) out[i] = kEmptyKey;
    }
  }

 private:
  __device__ void reload() {
#pragma unroll
    for (int r = 0; r < Block::kRows; ++r) threshold[r] = limits[Block::row(r)];
  }
};

}  // namespace action
