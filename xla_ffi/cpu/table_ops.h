// What the host does to a whole table between steps.
#pragma once

#include <cstdint>

#include "core/table_view.h"
#include "cpu/parallel.h"

namespace oneemb {

// Makes `table` an empty one. Rows are left as they are: a row is written when
// its slot is handed out, so memory that is never used is never touched.
void CreateTable(Parallel* parallel, const TableView& table);

// Copies `from` into the larger `to`; every row keeps its slot. False when
// there is no memory to work in.
bool GrowTable(Parallel* parallel, const TableView& from, const TableView& to);

// Whole rows, state included, of `ids`: [ids.size, row_words]. An unseen id
// reads the row that its first update would start from; padding and bad tables
// read zeros. slots as in Lookup.
void ReadRows(Parallel* parallel, const TableView& table,
              const TableRules& rules, const IdsView& ids, uint32_t* rows,
              int32_t* slots);

// Inserts or overwrites whole rows, in order; ids that meet a full table,
// padding and bad tables are left out and counted.
void WriteRows(const TableView& table, const TableRules& rules,
               const IdsView& ids, const uint32_t* rows, uint32_t step);

}  // namespace oneemb
