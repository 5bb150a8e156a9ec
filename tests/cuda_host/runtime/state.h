// The harness's own state: one kernel runs at a time, one block of it at a time, one thread of that at a time.
#pragma once

#include <csetjmp>
#include <cstdint>
#include <string>
#include <vector>

#include "../include/vector_types.h"
#include "runtime.h"

namespace cuda_host {

// One launch, with the kernel's type erased: `invoke(arguments)` runs one thread.
struct Launch {
  const void* kernel;
  dim3 grid, block;
  size_t shared_bytes;
  void (*invoke)(void* arguments);
  void* arguments;
  size_t arguments_bytes;
};

struct Copy {
  void* target;
  int bytes;
  bool committed;
  int group;
  unsigned char data[16];
};

struct Thread {
  jmp_buf context;
  bool started = false;  // its stack holds a fiber
  bool exited = false;
  unsigned number = 0;  // in the block
  uint3 index{};
  const char* operation = nullptr;  // where it waits
  Site site{};
  unsigned mask = 0;
  const void* in = nullptr;
  void* out = nullptr;
  std::vector<Copy> copies;
  int groups = 0;  // committed so far
};

struct Warp {
  unsigned present = 0;  // lanes that exist
  unsigned waiting = 0;  // lanes that wait in a warp operation
  uint32_t met = 0;      // time of the last operation of all its lanes
  uint32_t ordered = 0;  // time of the last one that ordered their memory accesses
};

struct Block {
  uint3 index{};
  std::vector<Warp> warps;
  unsigned arrived = 0, exited = 0, predicates = 0;
  int count = 0;          // of the last barrier's true predicates
  uint32_t started = 0;   // time
  uint32_t ordered = 0;   // time of the last barrier
  bool acquired = false;  // an atomic operation on global memory may have told it that other blocks are done
};

extern Launch const* launch;
extern Block block;
extern Thread* current;  // null outside kernels
extern uint32_t now;     // counts the events that order memory accesses
extern uint32_t launch_started;
Thread& thread(unsigned number);
unsigned threads();

// Fibers (fibers.cpp)
void make_ready(Thread* thread);
void suspend();      // until made ready again
bool run_threads();  // all threads of the block; false after a failure

constexpr unsigned kMostThreads = 1024;  // of a block
constexpr size_t kStack = 256 << 10;
extern char* stacks;  // of all fibers
inline bool on_fiber_stack(const void* address) {
  return static_cast<size_t>(static_cast<const char*>(address) - stacks) < kMostThreads * kStack;
}

// Memory (memory.cpp, buffers.cpp)
const char* verb(Access access);
void begin_memory();  // of a launch
void begin_shared();  // of a block
void begin_flight(void* shared, int bytes, const void* code);
void land(void* shared, int bytes);
void begin_global();  // of a launch
void check_global(uintptr_t address, size_t bytes, Access access, const void* code);
void forget_times();

// Reports (report.cpp)
[[noreturn]] void fail(const std::string& what, const void* code = nullptr);
void set_report(const std::string& what, const void* code);
const char* report();
std::string format(const char* pattern, ...) __attribute__((format(printf, 1, 2)));
std::string name(const Thread& thread);
std::string place(Site site);
std::string kernel_name();  // of the launch
void leave_block();         // back to run_threads(), which returns false

}  // namespace cuda_host
