// Search in the index of a table, by a whole warp.
//
// Where lanes read their own buckets, each load asks the first-level cache for
// 32 lines, once a field. So the warp copies its home buckets to shared memory,
// a few lanes a bucket, and each lane looks at its copy. The few keys that are
// not at home are then looked for by several lanes each.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/bucket.h"
#include "cuda/warp.cuh"

namespace oneemb::gpu {

static_assert(offsetof(Bucket, tags) == 0 && offsetof(Bucket, overflow) == 4,
              "what AskBucket takes a bucket apart by");

// What a bucket says about a key.
struct BucketAnswer {
  int32_t slot;  // or kSlotMissing
  bool last;     // nobody went past this bucket
};

// How a bucket is read that no kernel writes while this one runs.
struct InMemory {
  template <class T>
  static __device__ __forceinline__ T Load(const T* from) {
    return __ldg(from);
  }
};
struct InShared {
  template <class T>
  static __device__ __forceinline__ T Load(const T* from) {
    return *from;
  }
};

// The highest bit of each byte of `word` that is 0, and perhaps of some above
// such a byte. Whoever asks for a tag compares keys, and that of an entry that
// is free, id 0 of table 0, has another tag than it could be taken for.
__device__ __forceinline__ uint32_t ZeroBytes(uint32_t word) {
  return (word - 0x01010101U) & ~word & 0x80808080U;
}

// What a tag points to is asked for at once.
template <class Where>
__device__ __forceinline__ BucketAnswer AskBucket(const Bucket* bucket, Key key,
                                                  uint32_t tag) {
  const uint2 head = Where::Load(reinterpret_cast<const uint2*>(bucket));
  BucketAnswer answer{kSlotMissing, head.y == 0};
  uint32_t same = ZeroBytes(head.x ^ tag * 0x01010101U);
  for (; same != 0; same &= same - 1) {
    const uint32_t e = static_cast<uint32_t>(LowestBit(same)) / 8;
    const uint2 id =
        Where::Load(reinterpret_cast<const uint2*>(bucket->ids + e));
    const uint16_t table = Where::Load(bucket->tables + e);
    const int32_t slot = Where::Load(bucket->slots + e);
    if ((id.x | uint64_t{id.y} << 32) == key.id && table == key.table) {
      answer.slot = slot;
      break;
    }
  }
  return answer;
}

// A bucket as lanes copy it, each a part. With the room after it, few of the
// lanes that read the same field of theirs meet in a bank.
constexpr int kBucketParts = sizeof(Bucket) / sizeof(uint4);
struct BucketCopy {
  uint4 parts[kBucketParts];
  uint4 unused;
};

// The lanes that share a search past home, and the searches side by side.
constexpr int kSearchLanes = 4;
constexpr int kSearches = kWarp / kSearchLanes;

// A search that goes on after its home bucket.
struct alignas(16) SearchItem {
  uint64_t id;
  uint32_t home;
  uint16_t table;
  uint16_t tag;
};

// Room for the search of a warp.
union SearchShared {
  BucketCopy homes[kWarp];
  struct {
    SearchItem items[kWarp];
    int32_t slots[kWarp];  // what they come to
  } on;
};

// Copies 16 bytes to shared memory by way of the first-level cache: without it,
// every warp would ask one place of the second level for a popular bucket.
__device__ __forceinline__ void CopyCached(const uint4* from, uint4* to) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 16;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(to))),
               "l"(from)
               : "memory");
}

// Copies the home bucket of each lane, also of those that do not search: theirs
// is as good as any.
__device__ __forceinline__ void CopyHomes(const IndexView& index, uint32_t home,
                                          BucketCopy* homes) {
  const int part = Lane() % kBucketParts;
  __syncwarp();  // what was there before has been read
#pragma unroll
  for (int k = 0; k < kWarp; k += kWarp / kBucketParts) {
    const int of = k + Lane() / kBucketParts;
    const uint32_t b = __shfl_sync(kAllLanes, home, of);
    CopyCached(reinterpret_cast<const uint4*>(index.buckets + b) + part,
               &homes[of].parts[part]);
  }
  asm volatile("cp.async.wait_all;" ::: "memory");
  __syncwarp();
}

// Ends search `item`, of `count`, for the kSearchLanes lanes that have the
// same, each of which looks at another bucket. All wait for the longest search,
// so no lane leaves the loop alone: votes of some lanes would be taken one by
// one.
__device__ __forceinline__ void SearchOn(const IndexView& index, int item,
                                         int count, SearchShared* shared) {
  const SearchItem its = shared->on.items[item];
  const int lane = Lane() % kSearchLanes;
  const auto num_buckets = static_cast<uint32_t>(index.num_buckets);
  bool searches = item < count;
  // What no search has written may be anything.
  uint32_t b = searches ? its.home + 1 + lane : 0;
  for (uint32_t seen = 1; seen < num_buckets; seen += kSearchLanes) {
    while (b >= num_buckets) b -= num_buckets;
    BucketAnswer answer{kSlotMissing, false};
    if (searches) {
      answer =
          AskBucket<InMemory>(index.buckets + b, {its.id, its.table}, its.tag);
    }
    const uint32_t ends =
        __ballot_sync(kAllLanes, answer.slot >= 0 || answer.last);
    const uint32_t mine = ends >> (Lane() - lane) & ((1U << kSearchLanes) - 1);
    // The first lane of those that know the end.
    if ((mine & ((2U << lane) - 1)) == 1U << lane) {
      shared->on.slots[item] = answer.slot;
    }
    searches = searches && mine == 0;
    if (!__any_sync(kAllLanes, searches)) return;
    b += kSearchLanes;
  }
}

// The slot of each lane's key, or kSlotMissing, for a whole warp; lanes that do
// not search get kSlotMissing. As FindSlot of core/bucket.h.
__device__ inline int32_t ProbeIndex(const IndexView& index, Key key,
                                     bool searches, SearchShared* shared) {
  const uint64_t hash = HashKey(key);
  const auto home = static_cast<uint32_t>(HomeBucket(hash, index.num_buckets));
  const uint16_t tag = HashTag(hash);
  CopyHomes(index, home, shared->homes);
  BucketAnswer mine{kSlotMissing, true};
  if (searches) {
    mine = AskBucket<InShared>(
        reinterpret_cast<const Bucket*>(&shared->homes[Lane()]), key, tag);
  }
  const bool pending = mine.slot < 0 && !mine.last;
  const uint32_t mask = __ballot_sync(kAllLanes, pending);
  if (mask == 0) return mine.slot;
  const int at = __popc(mask & LowerLanes());
  __syncwarp();  // every lane has read its bucket
  if (pending) {
    shared->on.items[at] = {key.id, home, key.table, tag};
    shared->on.slots[at] = kSlotMissing;  // where every bucket was passed
  }
  __syncwarp();
  const int count = __popc(mask);
  for (int k = 0; k < count; k += kSearches) {
    SearchOn(index, k + Lane() / kSearchLanes, count, shared);
  }
  __syncwarp();
  return pending ? shared->on.slots[at] : mine.slot;
}

}  // namespace oneemb::gpu
