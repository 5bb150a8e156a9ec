// Parameters of action_contrast and of its gradients. Statistics are the log-sum-exps of the student's and of the
// teacher's logits, and the mean gap between the logits, in this order.
#pragma once

#include "layout.h"
#include "resources.h"

namespace action {

#define ACTION_CONTRAST_FIELDS(FIELD)                                         \
  FIELD(Tensor, student)      /* [G, N, D] */                                 \
  FIELD(Tensor, teacher)      /* [G, N, D] */                                 \
  FIELD(Tensor, bank)         /* [G, M, D] */                                 \
  FIELD(Tensor, query_labels) /* [G, N] int64, or none: every row may do */   \
  FIELD(Tensor, bank_labels)  /* [G, M] int64, together with query_labels */  \
  FIELD(double, student_temp)                                                 \
  FIELD(double, teacher_temp)                                                 \
  FIELD(bool, normalize)                                                      \
  FIELD(Tensor, kl)           /* [G, N] float32, a result like those below */ \
  FIELD(Tensor, statistics)   /* [3, G, N] float64, or none: not wanted */    \
  FIELD(Tensor, student_grad) /* [G, N, D] float32, or none: not wanted */    \
  FIELD(Tensor, similarity)   /* [G, N, k] float32; k = 0: no selection */    \
  FIELD(Tensor, index)        /* [G, N, k] int64 */                           \
  ACTION_PRODUCTS(FIELD) ACTION_THREADS(FIELD) ACTION_SCRATCH(FIELD)
ACTION_PARAMS(ActionContrastParams, ACTION_CONTRAST_FIELDS)

#define ACTION_CONTRAST_STUDENT_GRADIENT_FIELDS(FIELD)            \
  FIELD(Tensor, student) /* [G, N, D] */                          \
  FIELD(Tensor, teacher) /* [G, N, D] */                          \
  FIELD(Tensor, bank)    /* [G, M, D] */                          \
  FIELD(Tensor, lses)    /* [2, G, N] float64 */                  \
  FIELD(double, student_temp)                                     \
  FIELD(double, teacher_temp)                                     \
  FIELD(bool, normalize)                                          \
  FIELD(Tensor, student_grad) /* [G, N, D] float32, the result */ \
  ACTION_PRODUCTS(FIELD) ACTION_THREADS(FIELD) ACTION_SCRATCH(FIELD)
ACTION_PARAMS(ActionContrastStudentGradientParams, ACTION_CONTRAST_STUDENT_GRADIENT_FIELDS)

#define ACTION_CONTRAST_BANK_GRADIENT_FIELDS(FIELD)            \
  FIELD(Tensor, grad_kl)    /* [G, N] float32 */               \
  FIELD(Tensor, student)    /* [G, N, D] */                    \
  FIELD(Tensor, teacher)    /* [G, N, D] */                    \
  FIELD(Tensor, bank)       /* [G, M, D] */                    \
  FIELD(Tensor, statistics) /* [3, G, N] float64 */            \
  FIELD(double, student_temp)                                  \
  FIELD(double, teacher_temp)                                  \
  FIELD(bool, normalize)                                       \
  FIELD(Tensor, bank_grad) /* [G, M, D] float32, the result */ \
  ACTION_PRODUCTS(FIELD) ACTION_THREADS(FIELD) ACTION_SCRATCH(FIELD)
ACTION_PARAMS(ActionContrastBankGradientParams, ACTION_CONTRAST_BANK_GRADIENT_FIELDS)

}  // namespace action
