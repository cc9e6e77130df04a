// The operations of a cached table whose device tier is in the host's memory.
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

// As those of tier/cached_table.h. False when there is no memory to work in;
// then nothing has changed.
bool Stage(Parallel* parallel, const CachedTable& table, const IdsView& ids);
bool Prefetch(Parallel* parallel, const CachedTable& table, const IdsView& ids);
bool WriteDown(Parallel* parallel, const CachedTable& table);

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

// WriteDown, and marks rows clean in `residency`, a copy of the table's. On an
// error nothing is marked and the table is current as it was. *generation is
// that of the table with the copy.
void Flush(Parallel* parallel, const CachedTable& table,
           SlotResidency* residency, uint32_t* generation);

}  // namespace oneemb
