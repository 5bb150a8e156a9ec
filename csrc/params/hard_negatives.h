// Parameters of hard_negatives and of its gradient.
#pragma once

#include "layout.h"
#include "resources.h"

namespace action {

#define HARD_NEGATIVES_FIELDS(FIELD)                                         \
  FIELD(Tensor, query)        /* [G, N, D] */                                \
  FIELD(Tensor, bank)         /* [G, M, D] */                                \
  FIELD(Tensor, query_labels) /* [G, N] int64, or none: every row may do */  \
  FIELD(Tensor, bank_labels)  /* [G, M] int64, together with query_labels */ \
  FIELD(bool, normalize)                                                     \
  FIELD(Tensor, similarity) /* [G, N, k] float32, a result like the next */  \
  FIELD(Tensor, index)      /* [G, N, k] int64 */                            \
  ACTION_PRODUCTS(FIELD) ACTION_THREADS(FIELD) ACTION_SCRATCH(FIELD)
ACTION_PARAMS(HardNegativesParams, HARD_NEGATIVES_FIELDS)

#define HARD_NEGATIVES_GRADIENT_FIELDS(FIELD)                            \
  FIELD(Tensor, grad_similarity) /* [G, N, k] float32 */                 \
  FIELD(Tensor, query)           /* [G, N, D] */                         \
  FIELD(Tensor, bank)            /* [G, M, D] */                         \
  FIELD(Tensor, index)           /* [G, N, k] int64 */                   \
  FIELD(bool, normalize)                                                 \
  FIELD(Tensor, query_grad) /* [G, N, D] float32, or none: not wanted */ \
  FIELD(Tensor, bank_grad)  /* [G, M, D] float32, or none */             \
  ACTION_ENTRIES(FIELD) ACTION_THREADS(FIELD) ACTION_SCRATCH(FIELD)
ACTION_PARAMS(HardNegativesGradientParams, HARD_NEGATIVES_GRADIENT_FIELDS)

}  // namespace action
