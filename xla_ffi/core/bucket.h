// The index of a table: from (table, id) to the slot of its row.
//
// Open addressing over buckets of one cache line. A key lives in the first
// bucket with room, starting at its home bucket. A bucket counts the keys that
// had to go past it, so a search ends at the first bucket that nobody passed,
// and a key can be erased without leaving a tombstone.
//
//   byte  0      4          8        40         48       64
//         | tags | overflow | 4 keys | 4 tables | 4 slots |
//
// Every 64-bit id is legal: whether an entry is in use is told by its tag
// (0: empty), never by its key. The slot of an empty entry is 0, which is where
// keys that are inserted in parallel begin to compete for it.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/hash.h"
#include "core/macros.h"

namespace oneemb {

constexpr int kBucketEntries = 4;
constexpr int kBucketWords = 16;

// What a lookup reports in the place of a slot.
constexpr int32_t kSlotMissing = -1;
constexpr int32_t kSlotPadding = -2;
constexpr int32_t kSlotBadTable = -3;

struct Key {
  uint64_t id;
  uint16_t table;
};

struct Bucket {
  uint8_t tags[kBucketEntries];
  uint32_t overflow;
  uint64_t ids[kBucketEntries];
  uint16_t tables[kBucketEntries];
  int32_t slots[kBucketEntries];
};
static_assert(sizeof(Bucket) == kBucketWords * sizeof(uint32_t),
              "a bucket is one row of the uint32[buckets, 16] leaf");

struct IndexView {
  Bucket* buckets;
  int64_t num_buckets;  // below 2^32
};

// Buckets for `capacity` keys: filled to two thirds (from four on), or 24 bytes
// a row.
ONEEMB_HD int64_t NumBuckets(int64_t capacity) {
  return capacity < kBucketEntries ? 1 : (capacity * 3 + 7) / 8;
}

ONEEMB_HD uint64_t HashKey(Key key) {
  return Xxh64(key.id, kIndexSeed + key.table);
}

// What a key in its slot adds to the version of a table's layout. The version
// is the sum, so that rows can be inserted in parallel: a fingerprint of which
// key is in which slot, whatever history led there.
ONEEMB_HD uint64_t LayoutTerm(uint64_t hash, int32_t slot) {
  constexpr uint64_t kLayoutSeed = 0x20000;
  return Xxh64(hash ^ static_cast<uint32_t>(slot), kLayoutSeed);
}

// The bucket at which the search for a key begins.
ONEEMB_HD int64_t HomeBucket(uint64_t hash, int64_t num_buckets) {
  return static_cast<int64_t>(
      ((hash >> 32) * static_cast<uint64_t>(num_buckets)) >> 32);
}

ONEEMB_HD uint8_t HashTag(uint64_t hash) {
  const uint8_t tag = static_cast<uint8_t>(hash);
  return tag == 0 ? 1 : tag;
}

// The lowest set bit of x, which is not 0.
ONEEMB_HD int LowestBit(uint32_t x) {
#if defined(__CUDA_ARCH__)
  return __ffs(static_cast<int>(x)) - 1;
#else
  return __builtin_ctz(x);
#endif
}

// The entry of `bucket` that holds `key`, or -1. All tags are compared at once:
// which entry matches is as good as random, and so would be a branch on it.
ONEEMB_HD int FindEntry(const Bucket& bucket, Key key, uint8_t tag) {
  constexpr uint32_t kEachByte = 0x01010101;
  constexpr uint32_t kLowBits = 0x7f7f7f7f;
  uint32_t tags = 0;
  memcpy(&tags, bucket.tags, sizeof(tags));
  const uint32_t differing = tags ^ (kEachByte * tag);
  // The high bit of each byte that is 0.
  uint32_t matches =
      ~(((differing & kLowBits) + kLowBits) | differing | kLowBits);
  for (; matches != 0; matches &= matches - 1) {
    const int entry = LowestBit(matches) / 8;
    if (bucket.ids[entry] == key.id && bucket.tables[entry] == key.table) {
      return entry;
    }
  }
  return -1;
}

// The slot of `key`, searched from `bucket` on, or kSlotMissing.
ONEEMB_HD int32_t FindSlotFrom(const IndexView& index, Key key, uint8_t tag,
                               int64_t b) {
  for (int64_t probe = 0; probe < index.num_buckets; ++probe) {
    const Bucket& bucket = index.buckets[b];
    const int entry = FindEntry(bucket, key, tag);
    if (entry >= 0) return bucket.slots[entry];
    if (bucket.overflow == 0) return kSlotMissing;
    if (++b == index.num_buckets) b = 0;
  }
  return kSlotMissing;
}

// The slot of `key`, or kSlotMissing.
ONEEMB_HD int32_t FindSlot(const IndexView& index, Key key, uint64_t hash) {
  return FindSlotFrom(index, key, HashTag(hash),
                      HomeBucket(hash, index.num_buckets));
}

// Adds a key that is not there, to an entry which keeps it until it is erased:
// entry e of bucket b has the number b * kBucketEntries + e. That number, or -1
// when every bucket is full.
ONEEMB_HD int64_t InsertEntry(const IndexView& index, Key key, uint64_t hash,
                              int32_t slot) {
  int64_t b = HomeBucket(hash, index.num_buckets);
  for (int64_t probe = 0; probe < index.num_buckets; ++probe) {
    Bucket& bucket = index.buckets[b];
    for (int e = 0; e < kBucketEntries; ++e) {
      if (bucket.tags[e] != 0) continue;
      bucket.tags[e] = HashTag(hash);
      bucket.ids[e] = key.id;
      bucket.tables[e] = key.table;
      bucket.slots[e] = slot;
      return b * kBucketEntries + e;
    }
    ++bucket.overflow;
    if (++b == index.num_buckets) b = 0;
  }
  return -1;
}

// The same; whether there was room.
ONEEMB_HD bool InsertKey(const IndexView& index, Key key, uint64_t hash,
                         int32_t slot) {
  return InsertEntry(index, key, hash, slot) >= 0;
}

// The key of an entry that is in use.
ONEEMB_HD Key EntryKey(const IndexView& index, int64_t entry) {
  const Bucket& bucket = index.buckets[entry / kBucketEntries];
  const int64_t e = entry % kBucketEntries;
  return {bucket.ids[e], bucket.tables[e]};
}

// Takes out the key of an entry, whose hash this is; other keys stay where they
// are. The buckets that it had to go past no longer count it.
ONEEMB_HD void EraseEntry(const IndexView& index, int64_t entry,
                          uint64_t hash) {
  const int64_t last = entry / kBucketEntries;
  const int64_t e = entry % kBucketEntries;
  for (int64_t b = HomeBucket(hash, index.num_buckets); b != last;) {
    --index.buckets[b].overflow;
    if (++b == index.num_buckets) b = 0;
  }
  Bucket& bucket = index.buckets[last];
  bucket.tags[e] = 0;
  bucket.ids[e] = 0;
  bucket.tables[e] = 0;
  bucket.slots[e] = 0;
}

}  // namespace oneemb
