// Where a lookup writes.
#pragma once

#include <cstdint>

#include "core/table_view.h"

namespace oneemb {

struct LookupOutput {
  void* activations;  // [ids.size, embedding_dim] of `type`
  FloatType type;
  int32_t* slots;    // [ids.size], a slot or one of kSlot{Missing,...}
  uint32_t* counts;  // [kNumLookupCounts], the checksum included
  // The table's layout version, for update to compare; the CPU takes null.
  uint64_t* seen_version = nullptr;
  // How many ids of a cached table were not staged; may be null.
  int64_t* unstaged = nullptr;
};

}  // namespace oneemb
