// The wrappers of csrc/cuda/async_copy.cuh: nothing arrives before the wait that asks for it.
#pragma once

namespace action {

inline __attribute__((noinline)) void cp_async_16(void* shared, const void* global, bool valid) {
  cuda_host::async_copy(shared, global, 16, valid ? 16 : 0, __builtin_return_address(0));
}
inline __attribute__((noinline)) void cp_async_4(void* shared, const void* global, bool valid) {
  cuda_host::async_copy(shared, global, 4, valid ? 4 : 0, __builtin_return_address(0));
}
inline void cp_async_commit() { cuda_host::async_commit(); }
template <int GROUPS>
void cp_async_wait() {
  cuda_host::async_wait(GROUPS);
}

}  // namespace action
