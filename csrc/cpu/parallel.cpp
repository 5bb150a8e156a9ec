#include "parallel.h"

#include <atomic>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#define ACTION_HAS_FORK 1
#endif

namespace action {
namespace {

constexpr double kWorkPerThread = 3e5;

std::atomic<bool> used_threads{false};
std::atomic<bool> lost_threads{false};

#ifdef ACTION_HAS_FORK
const int registered = pthread_atfork(nullptr, nullptr, [] {
  if (used_threads) lost_threads = true;
});
#endif

}  // namespace

int useful_threads(int wanted, double work) {
  double worth = work / kWorkPerThread;
  int threads = worth < 2 ? 1 : worth < wanted ? static_cast<int>(worth) : wanted;
  if (threads <= 1 || lost_threads) return 1;
  used_threads = true;
  return threads;
}

Scratch::Scratch(int threads, int64_t floats_per_thread) {
  stride_ = (floats_per_thread + 15) / 16 * 16 + 16;  // a line apart: no two threads write one cache line
  memory_.reset(new float[threads * stride_ + 16]);
  uintptr_t address = reinterpret_cast<uintptr_t>(memory_.get());
  base_ = memory_.get() + (64 - address % 64) % 64 / 4;
}

}  // namespace action
