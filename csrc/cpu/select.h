// The k best of a stream of scores: a buffer that takes whatever beats the threshold; when it is full, it keeps the k
// best and the threshold rises to the k-th. Order: larger score first, then lower index.
#pragma once

#include <cstdint>

namespace action {

// Ordered like (score, -index), so that integer comparison is the order above.
using Candidate = uint64_t;

struct Selector {
  Candidate* buffer;
  int64_t size, capacity, k;

  // Entries a buffer needs for k of `available` scores.
  static int64_t entries(int64_t k, int64_t available) {
    int64_t wanted = 2 * k + 64;
    return wanted < available ? wanted : available;
  }
};

// Adds a score; returns the threshold that later scores must exceed (`threshold` if it stays).
float push(Selector& selector, float score, int64_t index, float threshold);

// Writes the k best in order, -inf and -1 where there are fewer.
void finish(Selector& selector, float* similarity, int64_t* index);

}  // namespace action
