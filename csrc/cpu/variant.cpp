// The entry points of this instruction set; compiled once for each, like the kernels themselves.
#include "kernels.h"

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
void exp2_array(const float*, float*, int64_t);
}  // namespace ACTION_ISA

const Kernels& ACTION_TABLE(ACTION_ISA)() {
  static const Kernels table{ACTION_NAME(ACTION_ISA), ACTION_ISA::contrast, ACTION_ISA::bank_gradient,
                             ACTION_ISA::gather, ACTION_ISA::gather_gradient, ACTION_ISA::exp2_array};
  return table;
}

}  // namespace action
