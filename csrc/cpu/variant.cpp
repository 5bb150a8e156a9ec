// The entry points of this instruction set; compiled once for each, like the kernels themselves.
#include "kernels.h"
#include "simd.h"

#define ACTION_TEXT(x) #x
#define ACTION_NAME(x) ACTION_TEXT(x)
#define ACTION_JOIN(x, y) x##y
#define ACTION_TABLE(isa) ACTION_JOIN(kernels_, isa)

namespace action {
namespace ACTION_ISA {

void contrast(const Contrast&, Resources);
void bank_gradient(const BankGradient&, Resources);
void gather(const Gather&, Resources);
void gather_gradient(const GatherGradient&, Resources);

// For the tests.
static void exp2_array(const float* x, float* y, int64_t n) {
  float block[kWidth] = {};
  for (int64_t i = 0; i < n; i += kWidth) {
    const int64_t count = n - i < kWidth ? n - i : kWidth;
    std::memcpy(block, x + i, sizeof(float) * count);
    store(block, exp2(load(block)));
    std::memcpy(y + i, block, sizeof(float) * count);
  }
}

}  // namespace ACTION_ISA

const Kernels& ACTION_TABLE(ACTION_ISA)() {
  static const Kernels table{ACTION_NAME(ACTION_ISA), ACTION_ISA::contrast, ACTION_ISA::bank_gradient,
                             ACTION_ISA::gather, ACTION_ISA::gather_gradient, ACTION_ISA::exp2_array};
  return table;
}

}  // namespace action
