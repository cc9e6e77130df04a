// The index of a table, from the device: search, and insertion in parallel.
//
// Keys that are inserted together end up where one thread would have put them,
// adding them in order of their slots: an entry goes to the oldest key (the
// lowest slot) that comes by, and whoever loses it goes on to the next entry.
// While they compete, an entry's slot holds a claim; then every key finds its
// claim and writes the rest of its entry.
#pragma once

#include <cstdint>

#include "core/bucket.h"

namespace oneemb::gpu {

// The slot of `key`, or kSlotMissing. A bucket is two sectors of memory: both
// are asked for at once.
__device__ __forceinline__ int32_t ProbeIndex(const IndexView& index, Key key) {
  const uint64_t hash = HashKey(key);
  const int64_t home = HomeBucket(hash, index.num_buckets);
  asm volatile("prefetch.global.L1 [%0];" ::"l"(
      reinterpret_cast<const char*>(index.buckets + home) + 32));
  return FindSlotFrom(index, key, HashTag(hash), home);
}

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
    for (int e = 0; e < kBucketEntries; ++e) {
      if (bucket->tags[e] != 0) continue;
      const uint32_t seen = atomicMax(ClaimWord(bucket, e), claim);
      if (seen == 0) return;
      if (seen < claim) claim = seen;
    }
    atomicAdd(&bucket->overflow, 1U);
    if (++b == index.num_buckets) b = 0;
  }
}

// Second step, after every key has competed: writes the entry.
__device__ inline void FinishEntry(const IndexView& index, Key key,
                                   uint64_t hash, int32_t slot) {
  const uint32_t claim = ClaimOf(slot);
  int64_t b = HomeBucket(hash, index.num_buckets);
  for (int64_t probe = 0; probe < index.num_buckets; ++probe) {
    Bucket* const bucket = index.buckets + b;
    for (int e = 0; e < kBucketEntries; ++e) {
      volatile uint32_t* const word = ClaimWord(bucket, e);
      if (*word != claim) continue;
      bucket->ids[e] = key.id;
      bucket->tables[e] = key.table;
      bucket->tags[e] = HashTag(hash);
      *word = static_cast<uint32_t>(slot);
      return;
    }
    if (++b == index.num_buckets) b = 0;
  }
}

}  // namespace oneemb::gpu
