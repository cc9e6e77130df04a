// Finds or inserts keys one after another, in order of first occurrence.
#pragma once

#include <cstdint>

#include "core/table_view.h"

namespace oneemb {

// An index that is being filled. Two tables of one spec with the same version
// have every row in the same slot.
struct InsertCursor {
  IndexView index;
  int64_t capacity;
  int64_t num_rows;
  uint64_t layout_version;
};

// The slot of `key`; the next free one if it is new; kSlotMissing if it is new
// and the table is full.
inline int32_t FindOrInsert(InsertCursor* cursor, Key key, uint64_t hash) {
  const int32_t found = FindSlot(cursor->index, key, hash);
  if (found >= 0 || cursor->num_rows >= cursor->capacity) return found;
  const int32_t slot = static_cast<int32_t>(cursor->num_rows);
  if (!InsertKey(cursor->index, key, hash, slot)) return kSlotMissing;
  ++cursor->num_rows;
  cursor->layout_version += LayoutTerm(hash, slot);
  return slot;
}

}  // namespace oneemb
