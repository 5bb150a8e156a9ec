// The launchers of this instruction set; compiled once for each, like the kernels themselves.
#include "variant.h"

#include <new>

#include "../params/action_contrast.h"
#include "../params/anatomical_contrast.h"
#include "../params/checks.h"
#include "../params/hard_negatives.h"
#include "../params/log_sum_exp.h"
#include "../params/relation_negatives.h"
#include "simd.h"

#define ACTION_TEXT(x) #x
#define ACTION_NAME(x) ACTION_TEXT(x)
#define ACTION_JOIN(x, y) x##y
#define ACTION_VARIANT(isa) ACTION_JOIN(variant_, isa)

namespace action {

#define EXP2_FIELDS(FIELD)           \
  FIELD(Tensor, x) /* [n] float32 */ \
  FIELD(Tensor, y) /* [n] float32, the result */
ACTION_PARAMS(Exp2Params, EXP2_FIELDS)

namespace ACTION_ISA {

int32_t action_contrast(const ActionContrastParams&);
int32_t action_contrast_student_gradient(const ActionContrastStudentGradientParams&);
int32_t action_contrast_bank_gradient(const ActionContrastBankGradientParams&);
int32_t hard_negatives(const HardNegativesParams&);
int32_t hard_negatives_gradient(const HardNegativesGradientParams&);
int32_t anatomical_contrast(const AnatomicalContrastParams&);
int32_t anatomical_contrast_gradient(const AnatomicalContrastGradientParams&);
int32_t relation_negatives(const RelationNegativesParams&);
int32_t log_sum_exp(const LogSumExpParams&);
int32_t log_sum_exp_bank_gradient(const LogSumExpBankGradientParams&);

namespace {

// The exponential that the softmaxes use, exposed for its test.
int32_t exp2_array(const Exp2Params& p) {
  Checks check(Device::cpu, p.x);
  const int64_t n = check.size(p.x, "x", 0, 1);
  const float* x = check.contiguous<float>(p.x, "x", {n});
  float* y = check.contiguous<float>(p.y, "y", {n});
  if (!check.passed()) return check.status();
  float block[kWidth] = {};
  for (int64_t i = 0; i < n; i += kWidth) {
    const int64_t count = n - i < kWidth ? n - i : kWidth;
    std::memcpy(block, x + i, sizeof(float) * count);
    store(block, exp2(load(block)));
    std::memcpy(y + i, block, sizeof(float) * count);
  }
  return kDone;
}

template <class Params, int32_t (*Launch)(const Params&)>
int32_t guarded(const void* params, void*) {
  try {
    return Launch(*static_cast<const Params*>(params));
  } catch (const std::bad_alloc&) {
    return fail(kOutOfMemory, "no memory for its scratch: lower the scratch limit, or use fewer rows");
  } catch (const std::exception& error) {
    return fail(kFailed, error.what());
  }
}

#define ACTION_LAUNCHER(name, Params) \
  Launcher { #name, guarded<Params, name>, ACTION_LAYOUT(Params) }

}  // namespace
}  // namespace ACTION_ISA

const Variant& ACTION_VARIANT(ACTION_ISA)() {
  using namespace ACTION_ISA;
  static const Launcher launchers[] = {
      ACTION_LAUNCHER(action_contrast, ActionContrastParams),
      ACTION_LAUNCHER(action_contrast_student_gradient, ActionContrastStudentGradientParams),
      ACTION_LAUNCHER(action_contrast_bank_gradient, ActionContrastBankGradientParams),
      ACTION_LAUNCHER(hard_negatives, HardNegativesParams),
      ACTION_LAUNCHER(hard_negatives_gradient, HardNegativesGradientParams),
      ACTION_LAUNCHER(anatomical_contrast, AnatomicalContrastParams),
      ACTION_LAUNCHER(anatomical_contrast_gradient, AnatomicalContrastGradientParams),
      ACTION_LAUNCHER(relation_negatives, RelationNegativesParams),
      ACTION_LAUNCHER(log_sum_exp, LogSumExpParams),
      ACTION_LAUNCHER(log_sum_exp_bank_gradient, LogSumExpBankGradientParams),
      ACTION_LAUNCHER(exp2_array, Exp2Params),
  };
  static const Variant table{ACTION_NAME(ACTION_ISA), launchers, sizeof launchers / sizeof *launchers};
  return table;
}

}  // namespace action
