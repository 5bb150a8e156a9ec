// One fiber per thread of the block. A switch is a pair of _setjmp and _longjmp, without a system call; fibers outlive
// their block and run the next one's thread.
#include <sys/mman.h>
#include <ucontext.h>

#include <deque>
#include <memory>

#include "state.h"

// Constant as far as a kernel can see, since each fiber finds its own values whenever it runs.
extern "C" {
uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;
}

namespace cuda_host {

Launch const* launch = nullptr;
Block block;
Thread* current = nullptr;
uint32_t now = 1, launch_started = 1;
char* stacks = nullptr;

namespace {

constexpr size_t kGuard = 4096;  // an overflow stops here

enum { kStart, kIdle, kLeave };

jmp_buf home;
std::unique_ptr<Thread[]> fibers(new Thread[kMostThreads]);
std::vector<Thread*> ready;  // a ring: no thread is in it twice
size_t head = 0, tail = 0;

char* map_stacks() {
  constexpr size_t kBytes = kMostThreads * kStack;
  void* memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) abort();
  for (unsigned i = 0; i < kMostThreads; ++i) mprotect(static_cast<char*>(memory) + i * kStack, kGuard, PROT_NONE);
  return static_cast<char*>(memory);
}

Thread* next_ready() {
  if (head == tail) return nullptr;
  return ready[head++ % kMostThreads];
}

[[noreturn]] void fiber_main();

[[noreturn]] void enter(Thread* next) {
  current = next;
  threadIdx = next->index;
  if (next->started) _longjmp(next->context, 1);
  next->started = true;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = stacks + (next - fibers.get()) * kStack + kGuard;
  context.uc_stack.ss_size = kStack - kGuard;
  context.uc_link = nullptr;
  makecontext(&context, reinterpret_cast<void (*)()>(fiber_main), 0);
  setcontext(&context);
  __builtin_unreachable();
}

[[noreturn]] void enter_next() {
  if (Thread* next = next_ready()) enter(next);
  current = nullptr;
  _longjmp(home, kIdle);
}

[[noreturn]] void fiber_main() {
  for (;;) {
    Thread* self = current;
    launch->invoke(launch->arguments);
    self->exited = true;
    ++block.exited;
    if (!_setjmp(self->context)) enter_next();
  }
}

}  // namespace

Thread& thread(unsigned number) { return fibers[number]; }
unsigned threads() { return launch->block.x * launch->block.y * launch->block.z; }

void make_ready(Thread* thread) {
  thread->operation = nullptr;
  ready[tail++ % kMostThreads] = thread;
}

void suspend() {
  if (!_setjmp(current->context)) enter_next();
}

void leave_block() {
  // The other fibers' stacks are abandoned as they are.
  for (unsigned i = 0; i < kMostThreads; ++i) fibers[i].started = false;
  current = nullptr;
  _longjmp(home, kLeave);
}

bool run_threads() {
  if (!stacks) stacks = map_stacks();
  ready.resize(kMostThreads);
  head = tail = 0;
  blockIdx = block.index;
  blockDim = launch->block;
  gridDim = launch->grid;
  for (unsigned i = 0; i < threads(); ++i) make_ready(&fibers[i]);
  switch (_setjmp(home)) {
    case kStart: enter_next();
    case kIdle: return true;
    default: return false;
  }
}

}  // namespace cuda_host
