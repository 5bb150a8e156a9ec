// The functions that compiled kernels call: before each load and store (the compiler's thread sanitizer inserts these
// calls) and where its undefined-behaviour sanitizer finds something. The sanitizers' own libraries are not used.
#include "state.h"

using namespace cuda_host;

#define CUDA_HOST_CALLER __builtin_return_address(0)

#define CUDA_HOST_ACCESS(bytes)                                                                             \
  void __tsan_read##bytes(void* p) { check_access(p, bytes, Access::kRead, CUDA_HOST_CALLER); }             \
  void __tsan_write##bytes(void* p) { check_access(p, bytes, Access::kWrite, CUDA_HOST_CALLER); }           \
  void __tsan_unaligned_read##bytes(void* p) { check_access(p, bytes, Access::kRead, CUDA_HOST_CALLER); }   \
  void __tsan_unaligned_write##bytes(void* p) { check_access(p, bytes, Access::kWrite, CUDA_HOST_CALLER); } \
  void __tsan_volatile_read##bytes(void* p) { check_access(p, bytes, Access::kRead, CUDA_HOST_CALLER); }    \
  void __tsan_volatile_write##bytes(void* p) { check_access(p, bytes, Access::kWrite, CUDA_HOST_CALLER); }

namespace {

// The head of what the undefined-behaviour sanitizer passes.
struct Found {
  const char* file;
  uint32_t line, column;
};

struct Mismatch {
  Found found;
  const void* type;
  unsigned char log_alignment;
};

void undefined(const char* what, const Found* found) {
  if (current) fail(std::string(what) + " at " + place({found->file, static_cast<int>(found->line)}));
}

}  // namespace

extern "C" {
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
CUDA_HOST_ACCESS(1)
CUDA_HOST_ACCESS(2)
CUDA_HOST_ACCESS(4)
CUDA_HOST_ACCESS(8)
CUDA_HOST_ACCESS(16)
void __tsan_read_range(void* p, size_t bytes) { check_access(p, bytes, Access::kRead, CUDA_HOST_CALLER); }
void __tsan_write_range(void* p, size_t bytes) { check_access(p, bytes, Access::kWrite, CUDA_HOST_CALLER); }
void __tsan_vptr_update(void*, void*) {}
void __tsan_vptr_read(void*) {}

void __ubsan_handle_type_mismatch_v1(Mismatch* data, void* address) {
  if (!current) return;
  size_t alignment = size_t{1} << data->log_alignment;
  fail(format("misaligned address: %p is not a multiple of %zu, at %s", address, alignment,
              place({data->found.file, static_cast<int>(data->found.line)}).c_str()));
}
void __ubsan_handle_out_of_bounds(Found* found, void* index) {
  undefined(format("array index %zd out of bounds", reinterpret_cast<ptrdiff_t>(index)).c_str(), found);
}
void __ubsan_handle_add_overflow(Found* found, void*, void*) { undefined("signed addition overflows", found); }
void __ubsan_handle_sub_overflow(Found* found, void*, void*) { undefined("signed subtraction overflows", found); }
void __ubsan_handle_mul_overflow(Found* found, void*, void*) { undefined("signed product overflows", found); }
void __ubsan_handle_negate_overflow(Found* found, void*) { undefined("signed negation overflows", found); }
void __ubsan_handle_divrem_overflow(Found* found, void*, void*) { undefined("division by zero", found); }
void __ubsan_handle_shift_out_of_bounds(Found* found, void*, void*) { undefined("shift count too large", found); }
}
