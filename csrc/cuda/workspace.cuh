// The memory of a call: pieces of one tensor, handed out one behind the other, and taken back from the end.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace action {

#ifdef ACTION_CUDA_HOST
constexpr int64_t kGap = 256;  // between pieces: what misses its own is noticed
#else
constexpr int64_t kGap = 0;
#endif

class Workspace {
 public:
  static constexpr int64_t kAlign = 256;  // bytes

  /// Of the memory that begins at `base`; null: pieces are counted and must not be used.
  explicit Workspace(void* base) : measures_(!base) {
    const auto address = reinterpret_cast<uintptr_t>(base);
    base_ = reinterpret_cast<char*>((address + kAlign - 1) / kAlign * kAlign);
    if (measures_) base_ = reinterpret_cast<char*>(kAlign);  // no piece is null
  }

  bool measures() const { return measures_; }

  /// Memory for so many T; nothing is in it.
  template <class T>
  T* take(int64_t count) {
    const int64_t bytes = count * static_cast<int64_t>(sizeof(T));
    char* piece = base_ + used_;
    used_ += (bytes + kAlign - 1) / kAlign * kAlign + kGap;
    most_ = used_ > most_ ? used_ : most_;
#ifdef ACTION_CUDA_HOST
    if (!measures_) cuda_host::carve(piece, static_cast<size_t>(bytes));
#endif
    return reinterpret_cast<T*>(piece);
  }

  /// The same where it is wanted, else null.
  template <class T>
  T* take_if(bool wanted, int64_t count) {
    return wanted ? take<T>(count) : nullptr;
  }

  int64_t mark() const { return used_; }

  /// Takes back all pieces since a mark. Launches before this line may still use them, launches behind it what comes in
  /// their place: they are on one stream.
  void release(int64_t mark) { used_ = mark; }

  /// Bytes that the tensor must have, wherever it begins.
  int64_t needed() const { return most_ ? most_ + kAlign - 1 : 0; }

 private:
  char* base_;
  int64_t used_ = 0, most_ = 0;
  bool measures_;
};

}  // namespace action
