// Keys in memory of the host, from the device.
#pragma once

#include <cstdint>

#include "core/bucket.h"

namespace oneemb::gpu {

static_assert(sizeof(Key) == sizeof(uint4), "a key goes over the bus at once");

// The padding too: where some bytes of a sector stay as they are, the bus
// carries a tenth as much.
__device__ inline void StoreKey(Key* to, Key key) {
  *reinterpret_cast<uint4*>(to) = {static_cast<uint32_t>(key.id),
                                   static_cast<uint32_t>(key.id >> 32),
                                   key.table, 0};
}

__device__ inline Key LoadKey(const Key* from) {
  const uint4 words = *reinterpret_cast<const uint4*>(from);
  return {words.x | uint64_t{words.y} << 32, static_cast<uint16_t>(words.z)};
}

}  // namespace oneemb::gpu
