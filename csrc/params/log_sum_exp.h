// Parameters of log_sum_exp and of its gradient in the bank.
#pragma once

#include "layout.h"
#include "resources.h"

namespace action {

#define LOG_SUM_EXP_FIELDS(FIELD)                                        \
  FIELD(Tensor, query) /* [G, N, D] */                                   \
  FIELD(Tensor, bank)  /* [G, M, D] */                                   \
  FIELD(double, temp)                                                    \
  FIELD(bool, normalize)                                                 \
  FIELD(Tensor, lse)        /* [G, N] float64, a result like the next */ \
  FIELD(Tensor, query_grad) /* [G, N, D] float32, or none: not wanted */ \
  ACTION_PRODUCTS(FIELD) ACTION_THREADS(FIELD) ACTION_SCRATCH(FIELD)
ACTION_PARAMS(LogSumExpParams, LOG_SUM_EXP_FIELDS)

#define LOG_SUM_EXP_BANK_GRADIENT_FIELDS(FIELD)                \
  FIELD(Tensor, grad_lse) /* [G, N] float32 */                 \
  FIELD(Tensor, query)    /* [G, N, D] */                      \
  FIELD(Tensor, bank)     /* [G, M, D] */                      \
  FIELD(Tensor, lse)      /* [G, N] float64 */                 \
  FIELD(double, temp)                                          \
  FIELD(bool, normalize)                                       \
  FIELD(Tensor, bank_grad) /* [G, M, D] float32, the result */ \
  ACTION_PRODUCTS(FIELD) ACTION_THREADS(FIELD) ACTION_SCRATCH(FIELD)
ACTION_PARAMS(LogSumExpBankGradientParams, LOG_SUM_EXP_BANK_GRADIENT_FIELDS)

}  // namespace action
