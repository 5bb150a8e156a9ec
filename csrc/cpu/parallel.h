// Threads and scratch memory.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace action {

// Threads worth starting for `work` multiply-adds: one where a hand-over costs more than it saves.
int useful_threads(int wanted, double work);

// Runs a pass that may start `threads` threads. In a forked child OpenMP would wait for ever for the threads that the
// parent had (this module or PyTorch, which shares the runtime), and that no longer exist. They belong to the thread
// that started them, so there the pass runs on a new thread, which gets its own.
void run(int threads, const std::function<void()>& pass);

inline int thread_number() {
#ifdef _OPENMP
  return omp_get_thread_num();
#else
  return 0;
#endif
}

// Scratch floats for all threads, allocated (and able to fail) before any thread starts. Not initialised.
class Scratch {
 public:
  Scratch(int threads, int64_t floats_per_thread);
  float* thread(int number) const { return base_ + number * stride_; }

 private:
  std::unique_ptr<float[]> memory_;
  float* base_;
  int64_t stride_;
};

// Cuts one thread's scratch into 64-byte aligned pieces.
class Cutter {
 public:
  explicit Cutter(float* memory) : next_(memory) {}
  template <typename T = float>
  T* take(int64_t count) {
    T* piece = reinterpret_cast<T*>(next_);
    next_ += size<T>(count);
    return piece;
  }
  // Floats that take<T>(count) uses.
  template <typename T = float>
  static int64_t size(int64_t count) {
    return (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 16;
  }

 private:
  float* next_;
};

}  // namespace action
