// What an update is told of one lookup.
#pragma once

#include <cstdint>

#include "core/ids.h"

namespace oneemb {

// One lookup, or a stack of microbatches of one lookup.
struct UpdateBatch {
  IdsView ids;
  const int32_t* slots;             // [ids.size], as lookup reported them
  const uint64_t* layout_versions;  // one a microbatch
  const uint32_t* counts;           // [num_microbatches, kNumLookupCounts]
  int64_t num_microbatches;
  const void* gradients;  // [ids.size, embedding_dim]
};

}  // namespace oneemb
