// The rules of CUDA's memory model that kernels rely on, byte by byte. Two threads' accesses, one of them a write, need
// a barrier of the block between them, or within a warp __syncwarp; atomic operations among themselves need nothing.
#include "cells.h"

#include <algorithm>

namespace cuda_host {
namespace {

struct Event {
  Scope scope;
  Access access;
  const std::string (*describe)(size_t offset);
  size_t offset;
  const void* code;

  uint32_t since() const { return scope == Scope::kShared ? block.started : launch_started; }
};

[[noreturn]] void race(const Event& event, const char* order, uint32_t time, unsigned other) {
  std::string whose = name(thread(other)) + (time < block.started ? " of an earlier block" : "");
  const char* kind = event.scope == Scope::kShared ? "shared" : "global";
  fail(format("%s memory race: %s %s without a barrier between, ", kind, order, whose.c_str()) +
           event.describe(event.offset),
       event.code);
}

// Whether a barrier lies between now and what thread `other` did then.
bool ordered(const Event& event, uint32_t time, unsigned other, bool was_read) {
  if (time < event.since()) return true;
  if (time < block.started) return block.acquired;
  uint32_t last = block.ordered;
  const Warp& warp = block.warps[current->number / kWarpSize];
  if (other / kWarpSize == current->number / kWarpSize) {
    // A value that a lane has put into a vote or a shuffle has been read by the time the others go on.
    bool met_is_enough = was_read && event.scope == Scope::kGlobal;
    last = std::max(last, met_is_enough ? std::max(warp.met, warp.ordered) : warp.ordered);
  }
  return time < last;
}

bool in_block(uint32_t time) { return time >= block.started; }

void check_after_write(const Event& event, const Cell& cell, const char* order) {
  bool own = in_block(cell.written) && cell.writer == current->number;
  bool atomics = event.access == Access::kAtomic && cell.atomic;
  if (!own && !atomics && !ordered(event, cell.written, cell.writer, false)) {
    race(event, order, cell.written, cell.writer);
  }
}

void check_after_read(const Event& event, const Cell& cell) {
  bool by_other_warp = cell.other_warp && cell.read >= block.ordered;
  bool own = in_block(cell.read) && cell.reader == current->number && !cell.other_lane;
  if (by_other_warp || (!own && !ordered(event, cell.read, cell.reader, true))) {
    race(event, "a write after a read by", cell.read, cell.reader);
  }
}

void note_read(Cell& cell) {
  unsigned self = current->number, warp = self / kWarpSize;
  if (cell.read < block.ordered) {
    cell.other_lane = cell.other_warp = false;
  } else if (cell.reader / kWarpSize != warp) {
    cell.other_warp = true;
  } else if (cell.read < block.warps[warp].ordered) {
    cell.other_lane = false;
  } else if (cell.reader != self) {
    cell.other_lane = true;
  }
  cell.read = now;
  cell.reader = static_cast<uint16_t>(self);
}

void check_cell(const Event& event, Cell& cell) {
  bool shared = event.scope == Scope::kShared;
  bool written = cell.written >= event.since();
  if (shared && written && cell.in_flight) {
    fail(format("%s before the wait for its asynchronous copy, issued by %s: ", verb(event.access),
                name(thread(cell.writer)).c_str()) +
             event.describe(event.offset),
         event.code);
  }
  if (shared && !written && event.access != Access::kWrite) {
    fail("read of uninitialised shared memory, " + event.describe(event.offset), event.code);
  }
  if (event.access == Access::kRead) {
    check_after_write(event, cell, "a read after a write by");
    note_read(cell);
  } else {
    check_after_write(
        event, cell,
        event.access == Access::kAtomic ? "an atomic operation after a write by" : "a write after a write by");
    check_after_read(event, cell);
    note_write(cell, event.access == Access::kAtomic);
  }
}

}  // namespace

void note_write(Cell& cell, bool atomic) {
  cell.written = now;
  cell.writer = static_cast<uint16_t>(current->number);
  cell.atomic = atomic;
  cell.in_flight = false;
}

void check_cells(Cell* cells, size_t bytes, Scope scope, Access access, const std::string (*describe)(size_t offset),
                 size_t offset, const void* code) {
  Event event{scope, access, describe, offset, code};
  for (size_t i = 0; i < bytes; ++i) check_cell(event, cells[i]);
}

}  // namespace cuda_host
