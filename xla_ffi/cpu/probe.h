// Looks up many keys at once: while one group of ids waits for its buckets,
// the group before it waits for its rows.
#pragma once

#include <cstdint>

#include "core/bucket.h"
#include "core/ids.h"
#include "cpu/parallel.h"

namespace oneemb {

constexpr int kCacheLine = 64;

// Inlined by force: g++ takes a function that only prefetches for one without
// effect, and drops calls of it.
[[gnu::always_inline]] inline void PrefetchRead(const void* address) {
  __builtin_prefetch(address, 0, 3);
}

[[gnu::always_inline]] inline void PrefetchLines(const void* address,
                                                 int64_t bytes) {
  const char* const p = static_cast<const char*>(address);
  for (int64_t b = 0; b < bytes; b += kCacheLine) PrefetchRead(p + b);
}

// One id on its way through the pipeline.
struct ProbeItem {
  int64_t position;
  uint64_t id;
  uint64_t hash;
  int32_t table;
  int32_t slot;  // kSlotUnknown until it is known
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
    item->hash = HashKey(KeyOf(*item));
    PrefetchRead(index_.buckets + Home(*item));
  }

  // Looks into the home bucket, where most keys are; asks for the next one when
  // the search goes on.
  void LookHome(ProbeItem* item) const {
    if (item->slot != kSlotUnknown) return;
    const Bucket& bucket = index_.buckets[Home(*item)];
    const int entry = FindEntry(bucket, KeyOf(*item), HashTag(item->hash));
    if (entry >= 0) {
      item->slot = bucket.slots[entry];
    } else if (bucket.overflow == 0) {
      item->slot = kSlotMissing;
    } else {
      PrefetchRead(&bucket + 1);  // past the end it is only a wasted hint
    }
  }

  void LookOn(ProbeItem* item) const {
    if (item->slot != kSlotUnknown) return;
    item->slot = FindSlot(index_, KeyOf(*item), item->hash);
  }

 private:
  Key KeyOf(const ProbeItem& item) const {
    return rules_.MakeKey(item.id, item.table);
  }
  int64_t Home(const ProbeItem& item) const {
    return HomeBucket(item.hash, index_.num_buckets);
  }

  const IndexView& index_;
  const KeyRules& rules_;
  IdCursor cursor_;
};

// Finds the slots of ids[range] and hands them on one by one, in order:
// `ahead(item)` as soon as the slot is known (to prefetch a row), and
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
      ahead(ring[on % kRing]);
    }
    const int64_t done = i - 3 * kDistance;
    if (done >= 0) emit(ring[done % kRing]);
  }
}

}  // namespace oneemb
