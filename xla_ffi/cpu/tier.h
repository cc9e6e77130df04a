// The device tier of a cached table: which rows a batch lacks, which slots it
// may take for them, and how a slot changes its key.
//
// A slot's clock is the number of the last batch that staged it, or
// AnnouncedClock (core/residency.h) of when a later batch was said to want it.
// Eviction takes the lowest clocks first, ties by slot; it never takes a slot
// of the batch that is being staged. Nothing here touches a Store.
#pragma once

#include <cstdint>
#include <vector>

#include "core/table_view.h"
#include "cpu/ids_digest.h"
#include "cpu/parallel.h"

namespace oneemb {

// What a batch found in the device tier.
struct TierBatch {
  IdsDigest* digests;  // of each block of ids, unless null
  int32_t* slots;      // [ids.size]
  int64_t touched;     // keys that are there and had an older clock
  uint64_t digest;     // of all, if there are digests
};

// The keys of a batch that the device tier lacks, each once, in order of first
// occurrence; the clock of those that are there becomes `now`, unless it is
// later. Writes all that `batch` has, to memory that the caller gives. False
// when there is no memory to work in.
bool FindMissingAndTouch(Parallel* parallel, const TableView& table,
                         const KeyRules& rules, const IdsView& ids,
                         uint32_t now, std::vector<Key>* missing,
                         TierBatch* batch);

// Fills in the slots that were missing, of keys that have some by now.
void FindAdmitted(const IndexView& index, const KeyRules& rules,
                  const IdsView& ids, int32_t* slots);

// Up to `count` slots in use whose clock is not `now`, the longest unused ones,
// in order of slots.
std::vector<int32_t> ChooseVictims(const TableView& table, uint32_t now,
                                   int64_t count, Victims which);

// The same as ChooseVictims with kAny, which looks at every slot, for a table
// as it goes from batch to batch: `queue` keeps what the last look found beyond
// what it was for. It begins empty; clear it when victims were not evicted.
std::vector<int32_t> TakeVictims(const TableView& table, uint32_t now,
                                 int64_t count, std::vector<TierVictim>* queue);

// The key of a slot in use.
inline Key SlotKey(const TableView& table, int32_t slot) {
  return EntryKey(table.index, table.residency[slot].entry);
}

// Takes the key out of a slot. What the row was is the caller's concern.
void EvictSlot(const TableView& table, int32_t slot);

// Gives a slot that is free, or was evicted, to a key that is not there. The
// row is the caller's.
void AdmitKey(const TableView& table, Key key, int32_t slot, SlotState state,
              uint32_t now);

}  // namespace oneemb
