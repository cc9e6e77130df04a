// Looks up many keys at once: while one group of ids waits for its buckets,
// the group before it waits for its rows.
#pragma once

#include <cstdint>

#include "core/bucket.h"
#include "cpu/ids.h"
#include "cpu/parallel.h"

namespace oneemb {

constexpr int kCacheLine = 64;

inline void PrefetchRead(const void* address) {
  __builtin_prefetch(address, 0, 3);
}

inline void PrefetchLines(const void* address, int64_t bytes) {
  const char* const p = static_cast<const char*>(address);
  for (int64_t b = 0; b < bytes; b += kCacheLine) PrefetchRead(p + b);
}

// One group of ids on its way through the pipeline.
struct ProbeGroup {
  static constexpr int kSize = 32;
  int64_t begin;
  int size;
  uint64_t ids[kSize];
  uint64_t hashes[kSize];
  int32_t tables[kSize];
  int32_t slots[kSize];
};

// Reads the ids and asks for their home buckets.
inline void StartGroup(const IndexView& index, const KeyRules& rules,
                       IdCursor* cursor, int64_t begin, int size,
                       ProbeGroup* group) {
  group->begin = begin;
  group->size = size;
  for (int i = 0; i < size; ++i) {
    const uint64_t id = cursor->id();
    const int32_t table = cursor->table();
    cursor->Next();
    group->ids[i] = id;
    group->tables[i] = table;
    group->slots[i] = rules.Reject(id, table);
    if (group->slots[i] < 0) continue;
    const uint64_t hash = HashKey(rules.MakeKey(id, table));
    group->hashes[i] = hash;
    PrefetchRead(index.buckets + HomeBucket(hash, index.num_buckets));
  }
}

inline void FindGroup(const IndexView& index, const KeyRules& rules,
                      ProbeGroup* group) {
  for (int i = 0; i < group->size; ++i) {
    if (group->slots[i] < 0) continue;
    const Key key = rules.MakeKey(group->ids[i], group->tables[i]);
    group->slots[i] = FindSlot(index, key, group->hashes[i]);
  }
}

// Finds the slots of ids[range] and hands them on in groups, in order:
// `ahead(group)` as soon as the slots are known (to prefetch rows), and
// `emit(group)` one group later.
template <class Ahead, class Emit>
void Probe(const IndexView& index, const KeyRules& rules, const IdsView& ids,
           Range range, const Ahead& ahead, const Emit& emit) {
  constexpr int kRing = 3;
  ProbeGroup ring[kRing];
  IdCursor cursor(ids, range.begin);
  const int64_t items = range.end - range.begin;
  const int64_t groups = (items + ProbeGroup::kSize - 1) / ProbeGroup::kSize;
  for (int64_t g = 0; g < groups + 2; ++g) {
    if (g < groups) {
      const int64_t begin = range.begin + g * ProbeGroup::kSize;
      const int64_t left = range.end - begin;
      const int size = left < ProbeGroup::kSize ? static_cast<int>(left)
                                                : ProbeGroup::kSize;
      StartGroup(index, rules, &cursor, begin, size, &ring[g % kRing]);
    }
    if (g >= 1 && g <= groups) {
      ProbeGroup* const group = &ring[(g - 1) % kRing];
      FindGroup(index, rules, group);
      ahead(*group);
    }
    if (g >= 2) emit(ring[(g - 2) % kRing]);
  }
}

}  // namespace oneemb
