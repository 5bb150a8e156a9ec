// In which order the rows of a bank are kept, so that neighbours come into different groups: see
// backends/thresholds.py. Row numbers have 32 bits.
#pragma once

#include <cstdint>

#include "../params/checks.h"

namespace action {

/// Rows 0 to before tiles * block are dealt out to the tiles in turn; those behind stay where they are.
struct Placement {
  uint32_t tiles = 1, block = 1;

  /// Where a bank row is kept.
  __device__ int64_t place_of(int64_t row) const {
    const auto i = static_cast<uint32_t>(row);
    return tiles == 1 || i >= tiles * block ? row : int64_t{i % tiles * block + i / tiles};
  }

  /// Which bank row is kept in a place.
  __device__ int64_t row_at(int64_t place) const {
    const auto i = static_cast<uint32_t>(place);
    return tiles == 1 || i >= tiles * block ? place : int64_t{i % block * tiles + i / block};
  }
};

/// Of a bank of so many rows, for tiles of `block` rows.
inline Placement placement_of(int64_t rows, int64_t block) {
  return {static_cast<uint32_t>(rows < block ? 1 : rows / block), static_cast<uint32_t>(block)};
}

}  // namespace action
