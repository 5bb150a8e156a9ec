// The table by which Python finds the launchers; everything else in the library is hidden.
#include "library.cuh"

#include <mutex>

#include "launch.cuh"

namespace action {
namespace {

const Launcher* const launchers[] = {
    &kActionContrast,
    &kActionContrastStudentGradient,
    &kActionContrastBankGradient,
    &kHardNegatives,
    &kHardNegativesGradient,
    &kLogSumExp,
    &kLogSumExpBankGradient,
    &kAnatomicalContrast,
    &kAnatomicalContrastGradient,
    &kRelationNegatives,
};
const Library library{sizeof(Tensor), sizeof(Launcher), launchers, sizeof launchers / sizeof *launchers, last_error};

std::mutex one_at_a_time;
Launches last;

}  // namespace

void publish(const Launches& launches) {
  const std::lock_guard<std::mutex> lock(one_at_a_time);
  last = launches;
}

}  // namespace action

ACTION_EXPORT const action::Library* action_library() { return &action::library; }

/// The name of launch i of the library's last call, in order; null behind the last one. For tests.
ACTION_EXPORT const char* action_launch(int i) { return i < action::last.count ? action::last.names[i] : nullptr; }
