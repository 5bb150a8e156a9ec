// What is known about each byte of memory that threads share, and which accesses to it may follow one another.
#pragma once

#include <cstdint>
#include <string>

#include "state.h"

namespace cuda_host {

struct Cell {
  uint32_t written = 0, read = 0;  // when last
  uint16_t writer = 0, reader = 0;
  bool atomic = false;                          // the last write
  bool in_flight = false;                       // an asynchronous copy has been issued and not waited for
  bool other_lane = false, other_warp = false;  // more than the last reader have read it since the last barrier
};

// Shared memory lives as long as its block. In global memory a launch also meets what its earlier blocks did, and what
// it holds at first is the caller's business.
enum class Scope { kShared, kGlobal };

// Reports an access that is not allowed, or notes it. `describe` says for the report which bytes they are.
void check_cells(Cell* cells, size_t bytes, Scope scope, Access access, const std::string (*describe)(size_t offset),
                 size_t offset, const void* code);
void note_write(Cell& cell, bool atomic);

}  // namespace cuda_host
