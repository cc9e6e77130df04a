// lookup: from ids to activations. Reads the table, never writes it.
#pragma once

#include "core/lookup_output.h"
#include "core/table_view.h"
#include "cpu/parallel.h"

namespace oneemb {

// An id with a row reads it; an unseen id reads its initial row; padding reads
// zeros; a table id out of range reads NaN, and so does an id that a cached
// table does not have at hand: its slot is kSlotMissing. `ids` are one
// microbatch. False when there is no memory to work in.
bool Lookup(Parallel* parallel, const TableView& table, const TableRules& rules,
            const IdsView& ids, const LookupOutput& out);

}  // namespace oneemb
