#include "select.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>

namespace action {
namespace {

Candidate encode(float score, int64_t index) {
  score += 0.0f;  // -0 and 0 are a tie
  uint32_t bits;
  std::memcpy(&bits, &score, 4);
  bits ^= (bits >> 31) ? 0xffffffffu : 0x80000000u;
  return static_cast<uint64_t>(bits) << 32 | (0xffffffffu - static_cast<uint32_t>(index));
}

float score_of(Candidate candidate) {
  uint32_t bits = static_cast<uint32_t>(candidate >> 32);
  bits ^= (bits >> 31) ? 0x80000000u : 0xffffffffu;
  float score;
  std::memcpy(&score, &bits, 4);
  return score;
}

int64_t index_of(Candidate candidate) { return 0xffffffffu - static_cast<uint32_t>(candidate); }

}  // namespace

float push(Selector& selector, float score, int64_t index, float threshold) {
  Candidate* first = selector.buffer;
  first[selector.size++] = encode(score, index);
  if (selector.size < selector.capacity || selector.capacity <= selector.k) return threshold;
  std::nth_element(first, first + selector.k - 1, first + selector.size, std::greater<>());
  selector.size = selector.k;
  return score_of(first[selector.k - 1]);
}

void finish(Selector& selector, float* similarity, int64_t* index) {
  Candidate* first = selector.buffer;
  int64_t found = std::min(selector.size, selector.k);
  if (selector.size > found) std::nth_element(first, first + found - 1, first + selector.size, std::greater<>());
  std::sort(first, first + found, std::greater<>());
  for (int64_t i = 0; i < found; ++i) {
    similarity[i] = score_of(first[i]);
    index[i] = index_of(first[i]);
  }
  for (int64_t i = found; i < selector.k; ++i) {
    similarity[i] = -std::numeric_limits<float>::infinity();
    index[i] = -1;
  }
}

}  // namespace action
