// The batch that was staged last: the slots of its ids, for `lookup`, which as
// a rule comes with the same ids and need not search for them again.
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
      : num_digests_(NumDigests(ids.size)),
        memory_(num_digests_ * int64_t{sizeof(IdsDigest)} +
                (ids.size + ids.table_period) * int64_t{sizeof(int32_t)}) {
    if (!memory_.ok()) return;
    int32_t* const tables = slots() + ids.size;
    std::copy_n(ids.table_ids, ids.table_period, tables);
    known_ = {ids, digests(), slots(), 0};
    known_.ids.words = nullptr;
    known_.ids.table_ids = tables;
  }

  bool ok() const { return memory_.ok(); }
  IdsDigest* digests() const { return memory_.As<IdsDigest>(); }
  int32_t* slots() const {
    return reinterpret_cast<int32_t*>(digests() + num_digests_);
  }
  // When digests and slots are written: of which table, and whether none of its
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
  const int64_t num_digests_;
  const Scratch memory_;
  KnownSlots known_{};
  uint32_t generation_ = 0;
  bool none_reserved_ = false;
};

}  // namespace oneemb
