// How a walk is divided among blocks: decided by sizes alone.
#pragma once

#include <algorithm>
#include <cstdint>

namespace action {

inline int64_t ceil_div(int64_t count, int64_t size) { return (count + size - 1) / size; }

/// Multiprocessors of the current device.
int64_t processors();

struct Splits {
  int64_t count, span;  // elements of a split; none is empty
};

/// Splits of a walk over `length` elements in steps of `step`, so that two blocks a multiprocessor run; `blocks` take
/// the walk together, each for its part of the other side. A split has two steps or more, where there are so many.
inline Splits splits(int64_t blocks, int64_t length, int64_t step, int64_t multiprocessors = processors()) {
  const int64_t wanted = std::max<int64_t>(1, std::min(2 * multiprocessors / blocks, length / (2 * step)));
  const int64_t span = ceil_div(length, wanted * step) * step;
  return {ceil_div(length, span), span};
}

}  // namespace action
