// Parameters of relation_negatives.
#pragma once

#include "layout.h"
#include "resources.h"

namespace action {

#define RELATION_NEGATIVES_FIELDS(FIELD)                                   \
  FIELD(Tensor, query_labels) /* [G, N] int64 */                           \
  FIELD(Tensor, thresholds)   /* [G, C, C] int64 cumulative weights */     \
  FIELD(Tensor, class_start)  /* [G, C + 1] int64 places in `rows` */      \
  FIELD(Tensor, rows)         /* [G, M] int64 bank rows sorted by class */ \
  FIELD(int64_t, seed)                                                     \
  FIELD(Tensor, index) /* [G, N, k] int64, the result */                   \
  ACTION_THREADS(FIELD)
ACTION_PARAMS(RelationNegativesParams, RELATION_NEGATIVES_FIELDS)

}  // namespace action
