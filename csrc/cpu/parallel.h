// Threads and scratch memory.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>

#ifdef _OPENMP
#include <omp.h>
#endif

namespace action {

// Threads worth starting for `work` multiply-adds: one where starting more costs more than it saves.
int useful_threads(int wanted, double work);

// Runs a pass that may start `threads` threads. In a forked child OpenMP would wait forever for the threads that
// the parent had started (this module, or PyTorch, which uses the same runtime) and that no longer exist. They belong
// to the thread that started them, so in a child the pass runs on a new thread, which gets its own.
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

// Cuts one thread's scratch into 64-byte aligned pieces. Without memory it only measures, so that a layout, written
// once as a function of a cutter, is both measured and cut.
class Cutter {
 public:
  explicit Cutter(float* memory = nullptr) : memory_(memory) {}

  template <typename T = float>
  T* take(int64_t count) {
    T* piece = memory_ ? reinterpret_cast<T*>(memory_ + used_) : nullptr;
    used_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 16;
    return piece;
  }

  // Floats that have been taken so far.
  int64_t used() const { return used_; }

 private:
  float* memory_;
  int64_t used_ = 0;
};

}  // namespace action
