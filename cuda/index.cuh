// The index of a table, from the device: search, and insertion in parallel.
//
// Keys that are inserted together end up where one thread would have put them,
// adding them in order of their slots: an entry goes to the oldest key (the
// lowest slot) that comes by, and whoever loses it goes on to the next entry.
// While they compete, an entry's slot holds a claim; then every key finds its
// claim and writes the rest of its entry.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/bucket.h"
#include "cuda/warp.cuh"

namespace oneemb::gpu {

static_assert(offsetof(Bucket, overflow) == 4 && offsetof(Bucket, ids) == 8 &&
                  offsetof(Bucket, slots) == 48,
              "what AskBucket takes a bucket apart by");

// What a bucket says about a key.
struct BucketAnswer {
  int32_t slot;  // or kSlotMissing
  bool last;     // nobody went past this bucket
};

// Both halves of a bucket are asked for at once; what its tags point to is then
// at hand.
__device__ __forceinline__ BucketAnswer AskBucket(const IndexView& index,
                                                  Key key, uint32_t tag,
                                                  int64_t b) {
  const Bucket* const bucket = index.buckets + b;
  const uint2 head = __ldg(reinterpret_cast<const uint2*>(bucket));
  const uint4 slots = __ldg(reinterpret_cast<const uint4*>(bucket->slots));
  BucketAnswer answer{kSlotMissing, head.y == 0};
  uint32_t same = __vcmpeq4(head.x, tag * 0x01010101U) & 0x01010101U;
  for (; same != 0; same &= same - 1) {
    const int e = LowestBit(same) / 8;
    const uint2 id = __ldg(reinterpret_cast<const uint2*>(bucket->ids + e));
    if ((id.x | uint64_t{id.y} << 32) != key.id ||
        __ldg(bucket->tables + e) != key.table) {
      continue;
    }
    const uint32_t slot = e == 0   ? slots.x
                          : e == 1 ? slots.y
                          : e == 2 ? slots.z
                                   : slots.w;
    answer.slot = static_cast<int32_t>(slot);
    break;
  }
  return answer;
}

// The lanes that search together past a home bucket.
constexpr int kSearchLanes = 4;

struct SearchShared {
  uint8_t pending[kWarp];  // the lanes whose search goes on
  int32_t slots[kWarp];
};

// The slot of each lane's key, or kSlotMissing, for a whole warp; lanes that do
// not search get kSlotMissing. As FindSlot of core/bucket.h, but where a key is
// not in its home bucket, several lanes look at the buckets after it at once: a
// warp would wait for the longest of 32 searches.
__device__ inline int32_t ProbeIndex(const IndexView& index, Key key,
                                     bool searches, SearchShared* shared) {
  const uint64_t hash = HashKey(key);
  const int64_t home = HomeBucket(hash, index.num_buckets);
  BucketAnswer mine{kSlotMissing, true};
  if (searches) mine = AskBucket(index, key, HashTag(hash), home);
  const bool pending = mine.slot < 0 && !mine.last;
  const uint32_t mask = __ballot_sync(kAllLanes, pending);
  if (mask == 0) return mine.slot;
  if (pending) {
    shared->pending[__popc(mask & LowerLanes())] = static_cast<uint8_t>(Lane());
  }
  __syncwarp();
  const int count = __popc(mask);
  const int lane = Lane() % kSearchLanes;
  const uint32_t group = ((1U << kSearchLanes) - 1) << (Lane() - lane);
  for (int k = 0; k < count; k += kWarp / kSearchLanes) {
    const int item = k + Lane() / kSearchLanes;
    const int from = shared->pending[item < count ? item : 0];
    const Key its{__shfl_sync(kAllLanes, key.id, from),
                  static_cast<uint16_t>(__shfl_sync(
                      kAllLanes, static_cast<uint32_t>(key.table), from))};
    const uint32_t tag = HashTag(__shfl_sync(kAllLanes, hash, from));
    int64_t b = __shfl_sync(kAllLanes, home, from) + 1 + lane;
    if (item >= count) continue;
    int32_t slot = kSlotMissing;
    for (int64_t seen = 1; seen < index.num_buckets; seen += kSearchLanes) {
      while (b >= index.num_buckets) b -= index.num_buckets;
      const BucketAnswer answer = AskBucket(index, its, tag, b);
      const uint32_t ends =
          __ballot_sync(group, answer.slot >= 0 || answer.last);
      if (ends != 0) {
        slot = __shfl_sync(group, answer.slot, __ffs(ends) - 1);
        break;
      }
      b += kSearchLanes;
    }
    if (lane == 0) shared->slots[from] = slot;
  }
  __syncwarp();
  return pending ? shared->slots[Lane()] : mine.slot;
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
