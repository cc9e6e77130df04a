// Insertion into the index of a table, in parallel.
//
// Keys that are inserted together end up where one thread would have put them,
// adding them in order of their slots: an entry goes to the oldest key (the
// lowest slot) that comes by, and whoever loses it goes on to the next entry.
// While they compete, an entry's slot holds a claim; then every key finds its
// claim and writes the rest of its entry.
#pragma once

#include <cstdint>

#include "core/bucket.h"
#include "cuda/warp.cuh"

namespace oneemb::gpu {

// Claims rise with age, and none is 0.
__device__ __forceinline__ uint32_t ClaimOf(int32_t slot) {
  return ~static_cast<uint32_t>(slot);
}

__device__ __forceinline__ uint32_t* ClaimWord(Bucket* bucket, int entry) {
  return reinterpret_cast<uint32_t*>(&bucket->slots[entry]);
}

// First step, for a key that is not there: claims an entry for it, or pushes
// the claims of younger keys on. No key may finish meanwhile.
__device__ inline void CompeteForEntry(const IndexView& index, uint64_t hash,
                                       int32_t slot) {
  uint32_t claim = ClaimOf(slot);
  int64_t b = HomeBucket(hash, index.num_buckets);
  for (int64_t probe = 0; probe < index.num_buckets; ++probe) {
    Bucket* const bucket = index.buckets + b;
    const uint32_t tags = *reinterpret_cast<const uint32_t*>(bucket->tags);
    // The lowest bit of each byte that is 0: all lanes try an entry at once,
    // whichever it is.
    uint32_t free = __vcmpeq4(tags, 0) & 0x01010101U;
    for (; free != 0; free &= free - 1) {
      const int e = LowestBit(free) / 8;
      const uint32_t seen = atomicMax(ClaimWord(bucket, e), claim);
      if (seen == 0) return;
      if (seen < claim) claim = seen;
    }
    atomicAdd(&bucket->overflow, 1U);
    if (++b == index.num_buckets) b = 0;
  }
}

// Second step, after every key has competed: writes the entry. Others may be
// writing theirs beside it; only the entry's own key changes its claim. Returns
// the number of the entry (core/bucket.h).
__device__ inline int64_t FinishEntry(const IndexView& index, Key key,
                                      uint64_t hash, int32_t slot) {
  const uint32_t claim = ClaimOf(slot);
  int64_t b = HomeBucket(hash, index.num_buckets);
  for (int64_t probe = 0; probe < index.num_buckets; ++probe) {
    Bucket* const bucket = index.buckets + b;
    const uint4 claims = __ldcg(reinterpret_cast<const uint4*>(bucket->slots));
    const int e = claims.x == claim   ? 0
                  : claims.y == claim ? 1
                  : claims.z == claim ? 2
                  : claims.w == claim ? 3
                                      : -1;
    if (e >= 0) {
      bucket->ids[e] = key.id;
      bucket->tables[e] = key.table;
      bucket->tags[e] = HashTag(hash);
      bucket->slots[e] = slot;
      return b * kBucketEntries + e;
    }
    if (++b == index.num_buckets) b = 0;
  }
  return -1;
}

}  // namespace oneemb::gpu
