// Parameters of anatomical_contrast and of its gradient.
#pragma once

#include "layout.h"
#include "resources.h"

namespace action {

#define ANATOMICAL_CONTRAST_FIELDS(FIELD)                          \
  FIELD(Tensor, query)    /* [G, N, D] */                          \
  FIELD(Tensor, positive) /* [G, N, D] */                          \
  FIELD(Tensor, bank)     /* [G, M, D] */                          \
  FIELD(Tensor, index)    /* [G, N, k] int64 */                    \
  FIELD(double, temp)                                              \
  FIELD(bool, normalize)                                           \
  FIELD(Tensor, loss) /* [G, N] float32, a result like the next */ \
  FIELD(Tensor, lse)  /* [G, N] float64 */                         \
  ACTION_THREADS(FIELD) ACTION_WORKSPACE(FIELD)
ACTION_PARAMS(AnatomicalContrastParams, ANATOMICAL_CONTRAST_FIELDS)

#define ANATOMICAL_CONTRAST_GRADIENT_FIELDS(FIELD)                          \
  FIELD(Tensor, grad_loss) /* [G, N] float32 */                             \
  FIELD(Tensor, query)     /* [G, N, D] */                                  \
  FIELD(Tensor, positive)  /* [G, N, D] */                                  \
  FIELD(Tensor, bank)      /* [G, M, D] */                                  \
  FIELD(Tensor, index)     /* [G, N, k] int64 */                            \
  FIELD(Tensor, lse)       /* [G, N] float64 */                             \
  FIELD(double, temp)                                                       \
  FIELD(bool, normalize)                                                    \
  FIELD(Tensor, query_grad)    /* [G, N, D] float32, or none: not wanted */ \
  FIELD(Tensor, positive_grad) /* [G, N, D] float32, or none */             \
  FIELD(Tensor, bank_grad)     /* [G, M, D] float32, or none */             \
  ACTION_ENTRIES(FIELD) ACTION_THREADS(FIELD) ACTION_SCRATCH(FIELD)
ACTION_PARAMS(AnatomicalContrastGradientParams, ANATOMICAL_CONTRAST_GRADIENT_FIELDS)

}  // namespace action
