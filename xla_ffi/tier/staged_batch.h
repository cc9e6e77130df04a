// The batch that was staged last: its ids and their slots, for `lookup`, which
// as a rule comes with the same ids and need not search for them again.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/known_slots.h"
#include "cpu/memory.h"

namespace oneemb {

class StagedBatch {
 public:
  // Room for a batch of one microbatch.
  explicit StagedBatch(const IdsView& ids)
      : memory_((ids.size * (ids.words_per_id + 1) + ids.table_period) *
                int64_t{sizeof(uint32_t)}) {
    if (!memory_.ok()) return;
    int32_t* const tables = memory_.As<int32_t>() + ids.size;
    std::copy_n(ids.table_ids, ids.table_period, tables);
    known_ = {ids, slots(), 0};
    known_.ids.table_ids = tables;
    known_.ids.words = words();
  }

  bool ok() const { return memory_.ok(); }
  int32_t* slots() const { return memory_.As<int32_t>(); }
  uint32_t* words() const {
    return memory_.As<uint32_t>() + known_.ids.size + known_.ids.table_period;
  }
  // When words and slots are written: of which table, and whether none of its
  // slots is reserved.
  void Finish(uint64_t layout_version, uint32_t generation,
              bool none_reserved) {
    known_.layout_version = layout_version;
    generation_ = generation;
    none_reserved_ = none_reserved;
  }

  const KnownSlots& known() const { return known_; }
  // Of the table as the stage left it; an update may follow, which reserves no
  // slot either, but an older table has the same layout too.
  bool NoneReserved(uint32_t generation) const {
    return none_reserved_ && generation == generation_;
  }

 private:
  const Scratch memory_;
  KnownSlots known_{};
  uint32_t generation_ = 0;
  bool none_reserved_ = false;
};

}  // namespace oneemb
