// The launchers of the library, each defined in the file of its kernel.
#pragma once

#include "../params/layout.h"

namespace action {

/// A launcher as the table has it.
template <class Params, int32_t (*Launch)(const Params&, void*)>
int32_t untyped(const void* params, void* stream) {
  return Launch(*static_cast<const Params*>(params), stream);
}
#define ACTION_LAUNCHER(name, Params) {#name, untyped<Params, name>, ACTION_LAYOUT(Params)}

extern const Launcher kPrepare;                    // prepare.cu
extern const Launcher kBankPass;                   // bank_pass.cu
extern const Launcher kMergeAndLimit;              // merge_and_limit.cu
extern const Launcher kQueryTerms;                 // query_terms.cu
extern const Launcher kVerdicts;                   // verdicts.cu
extern const Launcher kFinishAndCollect;           // finish_and_collect.cu
extern const Launcher kBuffered;                   // buffered.cu
extern const Launcher kOrderKeys;                  // order.cu
extern const Launcher kContrastGradient;           // gradient.cu
extern const Launcher kSelectedQueryGradient;      // hard_negatives.cu
extern const Launcher kInfoNce, kInfoNceGradient;  // anatomical_contrast.cu
extern const Launcher kIndexedBankGradient;        // indexed_rows.cu
extern const Launcher kRelationNegatives;          // relation_negatives.cu

}  // namespace action
