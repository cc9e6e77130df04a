// The operations of a cached table: its device tier and its Store together.
//
// A stale table is left as it is, but for a counter. What the Store could not
// do is reported to it, for the next call on the host to raise: here nothing is
// raised, since that would lose the table.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "core/table_view.h"
#include "cpu/lookup.h"
#include "cpu/parallel.h"
#include "cpu/update.h"

namespace oneemb {

class TableStore;

struct CachedTable {
  TableView view;
  const TableRules& rules;
  std::shared_ptr<TableStore> store;  // null when the table's name has none
  uint64_t nonce;
  uint32_t* generation;
  int64_t run;  // the execution of a compiled program that this is part of
};

// The Store of the table of a name, or null.
std::shared_ptr<TableStore> StoreOf(const std::string& name);

// Gives every key of the batch a slot: with its row, or reserved for it. A key
// whose row cannot be read, or for which there is no room because rows cannot
// be written down, stays out. ids.size is at most the capacity. False when
// there is no memory to work in; then nothing has changed.
bool Stage(Parallel* parallel, const CachedTable& table, const IdsView& ids);

// Begins to read the rows of a batch that is to be staged later, as many as
// there is room for. The table does not change; a stale one asks for nothing.
bool Prefetch(Parallel* parallel, const CachedTable& table, const IdsView& ids);

// Update (cpu/update.h) of a table that is current.
bool UpdateCached(Parallel* parallel, const CachedTable& table,
                  const UpdateArgs& args);

// Lookup (cpu/lookup.h); of a stale table all ids read NaN.
bool LookupCached(Parallel* parallel, const CachedTable& table,
                  const IdsView& ids, LookupOutput out);

// Whole rows as ReadRows (cpu/table_ops.h) has them, from the Store where the
// device tier has none; nothing changes. slots[i] is not negative where there
// is a row.
bool ReadCachedRows(Parallel* parallel, const CachedTable& table,
                    const IdsView& ids, uint32_t* rows, int32_t* slots);

// Stages the batch and writes its rows, of which a key given twice keeps the
// last. Rows that could not be staged are counted as unstaged.
bool WriteCachedRows(Parallel* parallel, const CachedTable& table,
                     const IdsView& ids, const uint32_t* rows);

// Writes every dirty row to the Store; the table stays as it is. False on an
// error, or when the table is stale.
bool WriteDown(const CachedTable& table);

// The same, and marks them clean in `residency`, a copy of the table's. On an
// error nothing is marked and the table is current as it was. *generation is
// that of the table with the copy.
void Flush(const CachedTable& table, SlotResidency* residency,
           uint32_t* generation);

}  // namespace oneemb
