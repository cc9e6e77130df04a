// What is done to a cached table: its device tier and its Store together.
//
// A stale table is left as it is, but for a counter. What the Store could not
// do is reported to it, for the next call on the host to raise: here nothing is
// raised, since that would lose the table.
//
// Functions return false when the device tier could not do its part.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "store/table_store.h"
#include "tier/device_tier.h"

namespace oneemb {

// Whether rows may be changed now; counts it if not. The Store's operations()
// is held, if there is a Store.
bool MayChange(const TieredTable& table, Operation operation);

// Whether rows may be read.
bool MayRead(const std::shared_ptr<TableStore>& store, TableStamp stamp,
             int64_t run);

// Tells the Store what a lookup found: ids that had no slot, or a stale table.
void CountLookup(TableStore* store, uint64_t nonce, bool stale,
                 int64_t unstaged);

// Gives every key of the batch a slot: with its row, or reserved for it. A key
// whose row cannot be read, or for which there is no room because rows cannot
// be written down, stays out. The batch has no more ids than the tier slots.
bool Stage(const TieredTable& table);

// Begins to read the rows of a batch that is to be staged later, as many as
// there is room for. The table does not change; a stale one asks for nothing.
bool Prefetch(const TieredTable& table);

// Rows of keys that the device tier lacks, from the Store; nothing changes.
// rows->rows[i] is null where there is none.
void ReadBelow(const TieredTable& table, const std::vector<Key>& keys,
               TakenRows* rows);

// Writes every dirty row to the Store; the table stays as it is. False on an
// error, or when the table is stale.
bool WriteDown(const TieredTable& table);

// The same for a table whose rows are then marked clean by the caller, and its
// generation counted up.
bool Flush(const TieredTable& table);

}  // namespace oneemb
