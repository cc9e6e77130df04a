// What one position adds to the checksum of its lookup, on the device.
#pragma once

#include <cstdint>

#include "core/checksum.h"
#include "core/ids.h"

namespace oneemb::gpu {

// Of position `i` of `ids`. Positions count from the beginning of a microbatch.
__device__ __forceinline__ uint32_t ChecksumAt(const IdsView& ids, int64_t i,
                                               uint64_t id, int32_t table,
                                               int32_t slot) {
  uint32_t within = static_cast<uint32_t>(i);
  if (ids.batch_size != ids.size) {
    within %= static_cast<uint32_t>(ids.batch_size);
  }
  return PositionChecksum(within, static_cast<uint32_t>(id),
                          static_cast<uint32_t>(id >> 32), table, slot);
}

}  // namespace oneemb::gpu
