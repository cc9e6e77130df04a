// lookup: from ids to activations. Reads the table, never writes it.
#pragma once

#include "core/lookup_output.h"
#include "core/table_view.h"
#include "cpu/known_slots.h"
#include "cpu/parallel.h"

namespace oneemb {

// An id with a row reads it; an unseen id reads its initial row; padding reads
// zeros; a table id out of range reads NaN, and so does an id that a cached
// table does not have at hand: its slot is kSlotMissing. `ids` are one
// microbatch. Ids whose slots are in `known`, which may be null, are not
// searched for. False when there is no memory to work in.
bool Lookup(Parallel* parallel, const TableView& table, const TableRules& rules,
            const IdsView& ids, const LookupOutput& out,
            const KnownSlots* known = nullptr);

}  // namespace oneemb
