// Slots that one search found, for another one of the same ids.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/ids.h"
#include "core/table_view.h"
#include "cpu/ids_digest.h"
#include "cpu/parallel.h"
#include "cpu/probe.h"

namespace oneemb {

// They are right for every table of this layout version, by which `update`
// trusts the slots of a lookup too.
struct KnownSlots {
  IdsView ids;               // without words
  const IdsDigest* digests;  // of each block of the ids
  const int32_t* slots;      // [ids.size]
  uint64_t layout_version;
};

// Whether `known` may have the slots of these ids, but for the ids themselves.
inline bool MayKnow(const KnownSlots& known, const TableView& table,
                    const IdsView& ids) {
  const IdsView& seen = known.ids;
  return known.layout_version == *table.layout_version &&
         seen.words_per_id == ids.words_per_id && seen.size == ids.size &&
         seen.batch_size == ids.batch_size &&
         seen.table_period == ids.table_period &&
         std::equal(ids.table_ids, ids.table_ids + ids.num_table_ids(),
                    seen.table_ids);
}

// Whether it has those of ids[range], which begins with a block, when it may.
inline bool Knows(const KnownSlots& known, const IdsView& ids, Range range) {
  for (int64_t i = range.begin; i < range.end; i += kDigestIds) {
    const Range block{i, std::min(i + kDigestIds, range.end)};
    if (!(DigestIds(ids, block) == known.digests[i / kDigestIds])) return false;
  }
  return true;
}

// What Probe (cpu/probe.h) does, without a search: `slots` has the slots of all
// ids. By blocks: rows that are asked for one by one between rows that are
// written wait for those. Of larger rows fewer are asked for at once.
template <class Ahead, class Emit>
void Follow(const IdsView& ids, const int32_t* slots, Range range,
            int64_t row_bytes, Ahead ahead, Emit emit) {
  constexpr int64_t kAheadBytes = int64_t{32} << 10;
  const int64_t block = std::clamp<int64_t>(kAheadBytes / row_bytes, 4, 64);
  IdCursor id(ids, range.begin);
  int64_t asked = range.begin;
  for (int64_t i = range.begin; i < range.end;) {
    const int64_t until = std::min(i + 2 * block, range.end);
    for (; asked < until; ++asked) ahead(slots[asked]);
    const int64_t end = std::min(i + block, range.end);
    for (; i < end; ++i) {
      emit(ProbeItem{i, id.id(), id.table(), slots[i]});
      id.Next();
    }
  }
}

}  // namespace oneemb
