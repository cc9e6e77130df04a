// Looks up many keys at once: while one id waits for its bucket, the ids before
// it wait for their rows.
#pragma once

#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "core/bucket.h"
#include "core/ids.h"
#include "cpu/parallel.h"

namespace oneemb {

constexpr int kCacheLine = 64;

// Into the second-level cache: what is on its way to the first one takes one of
// the few lines that it waits for at once, and rows of several lines would wait
// for those. Inlined by force: g++ takes a function that only prefetches for
// one without effect, and drops calls of it.
[[gnu::always_inline]] inline void PrefetchRead(const void* address) {
  constexpr int kSecondLevel = 2;
  __builtin_prefetch(address, 0, kSecondLevel);
}

[[gnu::always_inline]] inline void PrefetchWrite(const void* address) {
  __builtin_prefetch(address, 1, 3);
}

[[gnu::always_inline]] inline void PrefetchLines(const void* address,
                                                 int64_t bytes) {
  const char* const p = static_cast<const char*>(address);
  for (int64_t b = 0; b < bytes; b += kCacheLine) PrefetchRead(p + b);
}

// The entry of `bucket` that holds `key`, or -1: FindEntry for one processor.
// Comparing four whole ids takes no longer than comparing their tags.
inline int FindEntryOnCpu(const Bucket& bucket, Key key, uint8_t tag) {
#if defined(__AVX2__)
  (void)tag;
  const __m256i ids =
      _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bucket.ids));
  const __m256i same =
      _mm256_cmpeq_epi64(ids, _mm256_set1_epi64x(static_cast<int64_t>(key.id)));
  auto matches =
      static_cast<uint32_t>(_mm256_movemask_pd(_mm256_castsi256_pd(same)));
  for (; matches != 0; matches &= matches - 1) {
    const int entry = LowestBit(matches);
    // An empty entry has id 0 and tag 0.
    if (bucket.tables[entry] == key.table && bucket.tags[entry] != 0) {
      return entry;
    }
  }
  return -1;
#else
  return FindEntry(bucket, key, tag);
#endif
}

// One id on its way through the pipeline.
struct ProbeItem {
  int64_t position;
  uint64_t id;
  const Bucket* bucket;  // where the search begins, or goes on
  int32_t table;
  int32_t slot;  // kSlotUnknown until it is known
  uint8_t tag;
};
constexpr int32_t kSlotUnknown = -4;

// The stages of the pipeline. Each waits for one cache miss of the one before,
// kDistance ids later: short enough for the processor's miss buffers, long
// enough for a trip to memory.
class ProbeStages {
 public:
  ProbeStages(const IndexView& index, const KeyRules& rules, const IdsView& ids,
              int64_t begin)
      : index_(index), rules_(rules), cursor_(ids, begin) {}

  // Reads the next id and asks for its home bucket.
  void Start(int64_t position, ProbeItem* item) {
    item->position = position;
    item->id = cursor_.id();
    item->table = cursor_.table();
    cursor_.Next();
    item->slot = rules_.Reject(item->id, item->table);
    if (item->slot < 0) return;
    item->slot = kSlotUnknown;
    const uint64_t hash = HashKey(KeyOf(*item));
    item->tag = HashTag(hash);
    item->bucket = index_.buckets + HomeBucket(hash, index_.num_buckets);
    PrefetchRead(item->bucket);
  }

  // Looks into the home bucket, where most keys are; asks for the next one when
  // the search goes on.
  void LookHome(ProbeItem* item) const {
    if (item->slot != kSlotUnknown) return;
    item->slot = LookInto(*item);
    if (item->slot != kSlotUnknown) return;
    item->bucket = After(item->bucket);
    PrefetchRead(item->bucket);
  }

  void LookOn(ProbeItem* item) const {
    for (int64_t left = index_.num_buckets - 1;
         item->slot == kSlotUnknown && left > 0; --left) {
      item->slot = LookInto(*item);
      item->bucket = After(item->bucket);
    }
    if (item->slot == kSlotUnknown) item->slot = kSlotMissing;
  }

 private:
  Key KeyOf(const ProbeItem& item) const {
    return rules_.MakeKey(item.id, item.table);
  }

  // The slot, kSlotMissing, or kSlotUnknown when other buckets may have it.
  int32_t LookInto(const ProbeItem& item) const {
    const Bucket& bucket = *item.bucket;
    const int entry = FindEntryOnCpu(bucket, KeyOf(item), item.tag);
    if (entry >= 0) return bucket.slots[entry];
    return bucket.overflow == 0 ? kSlotMissing : kSlotUnknown;
  }

  const Bucket* After(const Bucket* bucket) const {
    ++bucket;
    return bucket == index_.buckets + index_.num_buckets ? index_.buckets
                                                         : bucket;
  }

  // Copies: the compiler would read a reference again after every store.
  const IndexView index_;
  const KeyRules rules_;
  IdCursor cursor_;
};

// Finds the slots of ids[range] and hands them on one by one, in order:
// `ahead(slot)` as soon as the slot is known (to prefetch a row), and
// `emit(item)` kDistance ids later.
template <class Ahead, class Emit>
void Probe(const IndexView& index, const KeyRules& rules, const IdsView& ids,
           Range range, const Ahead& ahead, const Emit& emit) {
  constexpr int64_t kDistance = 16;
  constexpr int64_t kRing = 4 * kDistance;
  ProbeItem ring[kRing];
  ProbeStages stages(index, rules, ids, range.begin);
  const int64_t n = range.end - range.begin;
  const auto in_flight = [&](int64_t i) { return i >= 0 && i < n; };
  for (int64_t i = 0; i < n + 3 * kDistance; ++i) {
    if (i < n) stages.Start(range.begin + i, &ring[i % kRing]);
    const int64_t home = i - kDistance;
    if (in_flight(home)) stages.LookHome(&ring[home % kRing]);
    const int64_t on = i - 2 * kDistance;
    if (in_flight(on)) {
      stages.LookOn(&ring[on % kRing]);
      ahead(ring[on % kRing].slot);
    }
    const int64_t done = i - 3 * kDistance;
    if (done >= 0) emit(ring[done % kRing]);
  }
}

}  // namespace oneemb
