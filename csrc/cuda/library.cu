// The table by which Python finds the launchers; everything else in the library is hidden.
#include "library.cuh"

#include "launch.cuh"

namespace action {
namespace {

const Launcher* const launchers[] = {
    &kPrepare,
    &kBankPass,
    &kMergeAndLimit,
    &kQueryTerms,
    &kVerdicts,
    &kFinishAndCollect,
    &kBuffered,
    &kOrderKeys,
    &kInfoNce,
    &kInfoNceGradient,
    &kContrastGradient,
    &kRelationNegatives,
    &kSelectedQueryGradient,
    &kIndexedBankGradient,
};
const Library library{sizeof(Tensor), sizeof(Launcher), launchers, sizeof launchers / sizeof *launchers, last_error};

}  // namespace
}  // namespace action

ACTION_EXPORT const action::Library* action_library() { return &action::library; }
