// The norm of the summed row gradients of a batch.
#pragma once

#include "cpu/parallel.h"
#include "cpu/update.h"

namespace oneemb {

// sqrt(sum over rows of |sum of the row's gradients|^2), rows in order of first
// occurrence of (table, id). Needs no table: ids that had no row count too,
// padding and bad tables do not. NaN when a batch is not as its lookup left it,
// or there is no memory to work in.
float GlobalNorm(Parallel* parallel, const KeyRules& rules,
                 const std::vector<UpdateBatch>& batches, int64_t dim,
                 FloatType type);

}  // namespace oneemb
