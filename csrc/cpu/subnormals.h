// Floating-point mode of a thread.
#pragma once

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace action {

// While it lives, results of its thread that are too small for a normal float become 0. A sharp softmax
// produces many of them, and they change no sum; but an x86 processor takes over a hundred cycles for each.
class FlushSubnormals {
#if defined(__SSE__)
 public:
  FlushSubnormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | _MM_FLUSH_ZERO_ON); }
  ~FlushSubnormals() { _mm_setcsr(before_); }
  FlushSubnormals(const FlushSubnormals&) = delete;
  FlushSubnormals& operator=(const FlushSubnormals&) = delete;

 private:
  unsigned before_;
#else
 public:
  FlushSubnormals() {}  // user-provided, so that an instance is not reported as unused
#endif
};

}  // namespace action
