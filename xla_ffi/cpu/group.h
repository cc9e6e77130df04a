// Brings the gradients of one row together.
#pragma once

#include <cstdint>

#include "cpu/parallel.h"

namespace oneemb {

// A gradient and the row it goes to: (slot << 32) | position in the batch.
using SlotPosition = uint64_t;

inline int32_t SlotOf(SlotPosition entry) {
  return static_cast<int32_t>(entry >> 32);
}
inline int64_t PositionOf(SlotPosition entry) {
  return static_cast<int64_t>(entry & 0xffffffffU);
}

// Writes an entry for every position of slots[0, n) whose slot is not negative,
// sorted by (slot, position), to one of the two arrays of n entries and returns
// that one; *count is their number. All slots are < num_slots, n <= 2^32.
// The result is the same for any number of threads.
SlotPosition* SortBySlot(Parallel* parallel, const int32_t* slots, int64_t n,
                         int64_t num_slots, SlotPosition* a, SlotPosition* b,
                         int64_t* count);

// The end of the group of entries of one slot that begins at `begin`.
inline int64_t GroupEnd(const SlotPosition* entries, int64_t begin,
                        int64_t count) {
  const int32_t slot = SlotOf(entries[begin]);
  int64_t end = begin + 1;
  while (end < count && SlotOf(entries[end]) == slot) ++end;
  return end;
}

// Moves both ends of a range on to the next beginning of a group, so that each
// group falls into one range.
Range AlignToGroups(const SlotPosition* entries, int64_t count, Range range);

}  // namespace oneemb
