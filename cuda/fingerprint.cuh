// The fingerprint of the keys that a batch lacks (oneemb::KeyFingerprint).
#pragma once

#include <cstdint>

#include "core/hash.h"
#include "cuda/place.h"
#include "cuda/warp.cuh"

namespace oneemb::gpu {

// Adds `count` keys, from number `begin` on; for a whole block.
__device__ inline void AddFingerprint(const PlaceArgs& a, uint32_t begin,
                                      uint32_t count) {
  uint64_t sums[2] = {0, 0};
  for (uint32_t k = threadIdx.x; k < count; k += kBlockThreads) {
    const NewKey key = a.new_keys[begin + k];
    const uint64_t place = uint64_t{begin + k} << 16 | key.table;
    for (int w = 0; w < 2; ++w) {
      sums[w] += Xxh64(Xxh64(key.id, a.seeds[w]) ^ place, a.seeds[1 - w]);
    }
  }
  for (int w = 0; w < 2; ++w) {
    const uint64_t sum = WarpSum64(sums[w]);
    if (Lane() == 0 && sum != 0) AtomicAdd64(&a.state->fingerprint[w], sum);
  }
}

}  // namespace oneemb::gpu
