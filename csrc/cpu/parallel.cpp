#include "parallel.h"

#include <atomic>
#include <cstdio>
#include <exception>
#include <thread>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#define ACTION_HAS_FORK 1
#endif

namespace action {
namespace {

constexpr double kWorkPerThread = 3e5;

// Was this process forked from another and never replaced by a program of its own? Known on Linux alone.
bool born_by_fork() {
  bool forked = false;
#ifdef __linux__
  constexpr unsigned kForkedWithoutExec = 0x40;  // PF_FORKNOEXEC of the kernel's task flags
  if (std::FILE* file = std::fopen("/proc/self/stat", "r")) {
    unsigned flags = 0;
    // pid, (name) with at most 16 characters in it, state, five numbers, flags.
    if (std::fscanf(file, "%*d (%*[^)]) %*c %*d %*d %*d %*d %*d %u", &flags) == 1) forked = flags & kForkedWithoutExec;
    std::fclose(file);
  }
#endif
  return forked;
}

std::atomic<bool> forked{born_by_fork()};

#ifdef ACTION_HAS_FORK
const int registered = pthread_atfork(nullptr, nullptr, [] { forked = true; });
#endif

}  // namespace

int useful_threads(int wanted, double work) {
  double worth = work / kWorkPerThread;
  return worth < 2 ? 1 : worth < wanted ? static_cast<int>(worth) : wanted;
}

void run(int threads, const std::function<void()>& pass) {
  if (!forked || threads <= 1) return pass();
  std::exception_ptr failure;
  std::thread([&] {
    try {
      pass();
    } catch (...) {
      failure = std::current_exception();
    }
  }).join();
  if (failure) std::rethrow_exception(failure);
}

Scratch::Scratch(int threads, int64_t floats_per_thread) {
  stride_ = (floats_per_thread + 15) / 16 * 16 + 16;  // a line apart: no two threads write one cache line
  memory_.reset(new float[threads * stride_ + 16]);
  uintptr_t address = reinterpret_cast<uintptr_t>(memory_.get());
  base_ = memory_.get() + (64 - address % 64) % 64 / 4;
}

}  // namespace action
