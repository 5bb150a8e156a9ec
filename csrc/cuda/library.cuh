// The launchers of the library, an operator each, defined in the file of its name.
#pragma once

#include "call.cuh"

namespace action {

extern const Launcher kActionContrast, kActionContrastStudentGradient,
    kActionContrastBankGradient;                                         // action_contrast.cu
extern const Launcher kHardNegatives, kHardNegativesGradient;            // hard_negatives.cu
extern const Launcher kLogSumExp, kLogSumExpBankGradient;                // log_sum_exp.cu
extern const Launcher kAnatomicalContrast, kAnatomicalContrastGradient;  // anatomical_contrast.cu
extern const Launcher kRelationNegatives;                                // relation_negatives.cu

}  // namespace action
