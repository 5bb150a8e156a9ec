// Global memory: the caller's buffers with their bounds, and what a launch has done to them so far.
#include <cstring>
#include <map>
#include <memory>
#include <unordered_map>

#include "cells.h"

namespace cuda_host {
namespace {

struct Range {
  uintptr_t end, storage, storage_end;
};
std::map<uintptr_t, Range> buffers;  // by begin, disjoint
bool bounds_known = false;
uintptr_t last_begin = 0, last_end = 0;

constexpr uintptr_t kPage = 4096;  // bytes that get cells together
std::unordered_map<uintptr_t, std::unique_ptr<Cell[]>> pages;
uintptr_t last_page = 0;
Cell* last_cells = nullptr;

const std::string describe(size_t address) {
  auto found = buffers.upper_bound(address);
  size_t offset = found == buffers.begin() ? 0 : address - std::prev(found)->first;
  return format("at offset %zu of its tensor", offset);
}

Cell* cells_of(uintptr_t page) {
  if (page != last_page || !last_cells) {
    auto& cells = pages[page];
    if (!cells) cells.reset(new Cell[kPage]);
    last_page = page;
    last_cells = cells.get();
  }
  return last_cells;
}

void check_bounds(uintptr_t address, size_t bytes, Access access, const void* code) {
  if (address >= last_begin && address + bytes <= last_end) return;
  auto found = buffers.upper_bound(address);
  std::string detail;
  if (found != buffers.begin()) {
    auto it = std::prev(found);
    if (address + bytes <= it->second.end) {
      last_begin = it->first;
      last_end = it->second.end;
      return;
    }
    detail = format("; the tensor before it has %zu bytes and ends %zd bytes before", it->second.end - it->first,
                    static_cast<ptrdiff_t>(address - it->second.end));
  }
  if (found != buffers.end()) detail += format("; the next begins %zu bytes after", found->first - address);
  fail(format("global memory out of bounds: %s of %zu bytes in no tensor's memory", verb(access), bytes) + detail,
       code);
}

}  // namespace

// Before any buffer has been registered nothing is known and everything passes.
void check_global(uintptr_t address, size_t bytes, Access access, const void* code) {
  if (!bounds_known) return;
  check_bounds(address, bytes, access, code);
  if (access == Access::kAtomic) block.acquired = true;
  for (uintptr_t at = address, end = address + bytes; at < end;) {
    size_t part = std::min<size_t>(end - at, kPage - at % kPage);
    check_cells(cells_of(at / kPage) + at % kPage, part, Scope::kGlobal, access, describe, address, code);
    at += part;
  }
}

void begin_global() { last_begin = last_end = 0; }

void forget_times() {
  pages.clear();
  last_cells = nullptr;
}

void register_buffer(uintptr_t begin, size_t bytes, uintptr_t storage, size_t storage_bytes) {
  uintptr_t end = begin + bytes, storage_end = storage + storage_bytes;
  bounds_known = true;
  auto it = buffers.lower_bound(storage);
  if (it != buffers.begin() && std::prev(it)->second.end > storage) --it;
  while (it != buffers.end() && it->first < storage_end) {
    bool same_storage = it->second.storage == storage && it->second.storage_end == storage_end;
    bool touches = it->first <= end && begin <= it->second.end;
    if (same_storage && !touches) {
      ++it;
      continue;
    }
    if (same_storage) {
      begin = std::min(begin, it->first);
      end = std::max(end, it->second.end);
    }
    it = buffers.erase(it);
  }
  if (begin < end) buffers[begin] = {end, storage, storage_end};
}

void carve(void* begin, size_t bytes) {
  if (!bounds_known) return;
  auto address = reinterpret_cast<uintptr_t>(begin);
  register_buffer(address, bytes, address, bytes);
  std::memset(begin, 0xff, bytes);
}

void forget_buffers(bool strict) {
  buffers.clear();
  forget_times();
  bounds_known = strict;
}

}  // namespace cuda_host

// From here on kernels may access registered memory only. A storage registered with other bounds was freed since.
extern "C" __attribute__((visibility("default"))) void cuda_host_register(uintptr_t begin, size_t bytes,
                                                                          uintptr_t storage, size_t storage_bytes) {
  cuda_host::register_buffer(begin, bytes, storage, storage_bytes);
}

// Forgets all buffers; with `strict` a kernel that finds none registered may access none, else it may access anything.
extern "C" __attribute__((visibility("default"))) void cuda_host_forget(int strict) {
  cuda_host::forget_buffers(strict != 0);
}
