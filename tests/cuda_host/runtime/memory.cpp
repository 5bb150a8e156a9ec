// Where an access goes: to shared memory, whose every byte is followed, to the caller's buffers, to constants.
#include <elf.h>
#include <link.h>

#include <algorithm>
#include <cstring>

#include "cells.h"

// Dynamic shared memory; every array that a source declares `extern __shared__` begins at this address. It is
// thread-local, as are static `__shared__` variables, because that is how both can be declared in a function.
extern "C" thread_local unsigned char cuda_host_dynamic_shared[];

namespace cuda_host {
namespace {

constexpr unsigned char kPoison = 0xff;  // NaN in every floating type, -1 in every integer

struct Region {
  unsigned char* base;
  size_t bytes;
  std::vector<Cell> cells;
};

Region dynamic, fixed;                // of the launching thread; `fixed` has `dynamic` in it, with margins around
constexpr size_t kMargin = 64 << 10;  // on both sides: an access there is known to have missed dynamic shared memory

struct Segment {
  uintptr_t begin, end;
};
std::vector<Segment> segments;  // of this library: constants and __device__ variables

int find_self(dl_phdr_info* info, size_t, void*) {
  auto here = reinterpret_cast<uintptr_t>(&find_self);
  bool self = false;
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& header = info->dlpi_phdr[i];
    uintptr_t begin = info->dlpi_addr + header.p_vaddr;
    self |= header.p_type == PT_LOAD && here - begin < header.p_memsz;
  }
  if (!self) return 0;
  segments.clear();
  for (int i = 0; i < info->dlpi_phnum; ++i) {
    const auto& header = info->dlpi_phdr[i];
    uintptr_t begin = info->dlpi_addr + header.p_vaddr;
    if (header.p_type == PT_LOAD) segments.push_back({begin, begin + header.p_memsz});
    if (header.p_type == PT_TLS) {
      fixed.base = static_cast<unsigned char*>(info->dlpi_tls_data);
      fixed.bytes = header.p_memsz;
    }
  }
  return 1;
}

const std::string describe_dynamic(size_t offset) { return format("at offset %zu of dynamic shared memory", offset); }
const std::string describe_fixed(size_t offset) { return format("at offset %zu of static shared memory", offset); }

size_t region_offset(const Region& region, uintptr_t address) {
  return address - reinterpret_cast<uintptr_t>(region.base);
}

Cell* shared_cells(const void* pointer) {
  for (Region* region : {&dynamic, &fixed}) {
    size_t offset = region_offset(*region, reinterpret_cast<uintptr_t>(pointer));
    if (offset < region->bytes) return &region->cells[offset];
  }
  return nullptr;
}

}  // namespace

const char* verb(Access access) {
  return access == Access::kRead ? "read" : access == Access::kWrite ? "write" : "atomic operation";
}

void begin_memory() {
  dynamic.base = cuda_host_dynamic_shared;  // touching it makes this thread's variables exist
  dynamic.bytes = launch->shared_bytes;
  dl_iterate_phdr(find_self, nullptr);
  constexpr uint32_t kLate = 3u << 30;  // far enough from the last time for any launch
  if (now > kLate) {
    now = 1;
    dynamic.cells.clear();
    fixed.cells.clear();
    forget_times();
  }
  launch_started = ++now;
  for (Region* region : {&dynamic, &fixed}) {
    if (region->cells.size() < region->bytes) region->cells.resize(region->bytes);
  }
  begin_global();
}

void begin_shared() {
  std::memset(dynamic.base, kPoison, dynamic.bytes);
  unsigned char* margins = dynamic.base - kMargin;
  std::memset(fixed.base, kPoison, margins - fixed.base);
  unsigned char* rest = dynamic.base + kSharedLimit + kMargin;
  std::memset(rest, kPoison, fixed.base + fixed.bytes - rest);
}

void check_access(const void* pointer, size_t bytes, Access access, const void* code) {
  if (!current || on_fiber_stack(pointer)) return;
  auto address = reinterpret_cast<uintptr_t>(pointer);
  size_t offset = region_offset(dynamic, address);
  if (offset + kMargin < 2 * kMargin + kSharedLimit) {
    if (offset < dynamic.bytes && offset + bytes <= dynamic.bytes) {
      return check_cells(&dynamic.cells[offset], bytes, Scope::kShared, access, describe_dynamic, offset, code);
    }
    fail(format("shared memory out of bounds: %s of %zu bytes at offset %zd of %zu bytes of dynamic shared memory",
                verb(access), bytes, static_cast<ptrdiff_t>(offset), dynamic.bytes),
         code);
  }
  offset = region_offset(fixed, address);
  if (offset < fixed.bytes) {
    bytes = std::min(bytes, fixed.bytes - offset);
    return check_cells(&fixed.cells[offset], bytes, Scope::kShared, access, describe_fixed, offset, code);
  }
  if (address - reinterpret_cast<uintptr_t>(launch->arguments) < launch->arguments_bytes) return;
  for (const Segment& segment : segments) {
    if (address - segment.begin < segment.end - segment.begin) return;
  }
  check_global(address, bytes, access, code);
}

void check_alignment(const char* operation, const void* address, size_t alignment, const void* code) {
  size_t over = reinterpret_cast<uintptr_t>(address) % alignment;
  if (current && over) {
    fail(format("misaligned address: %s needs %zu bytes, %p is %zu past", operation, alignment, address, over), code);
  }
}

// The target is written at some time from now on: as bad for readers as a store.
void begin_flight(void* shared, int bytes, const void* code) {
  Cell* cells = shared_cells(shared);
  if (!cells) fail("an asynchronous copy's target is not shared memory", code);
  check_access(shared, bytes, Access::kWrite, code);
  for (int i = 0; i < bytes; ++i) cells[i].in_flight = true;
}

void land(void* shared, int bytes) {
  Cell* cells = shared_cells(shared);
  for (int i = 0; i < bytes; ++i) note_write(cells[i], false);
}

}  // namespace cuda_host
