// A device tier in the memory of the host.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/table_view.h"
#include "cpu/parallel.h"
#include "store/aligned_buffer.h"
#include "store/table_store.h"
#include "tier/device_tier.h"
#include "tier/staged_batch.h"

namespace oneemb {

class CpuTier final : public DeviceTier {
 public:
  // What it is given outlives it. `store`, which may be null, keeps the slots
  // of the batch that was staged last.
  CpuTier(Parallel* parallel, const TableView& view, const TableRules& rules,
          const IdsView& ids, uint32_t* generation, TableStore* store)
      : DeviceTier(view.capacity, view.row_words, view.counters, generation),
        parallel_(parallel),
        view_(view),
        rules_(rules),
        ids_(ids),
        store_(store) {}

  BufferSource* memory() override { return HeapSource(); }
  bool Digest(uint64_t* digest) override;
  bool FindMissingAndTouch(uint32_t now, MissingKeys* missing,
                           uint64_t* digest) override;
  bool FindMissingAhead(MissingKeys* missing) override;
  bool CountTouched(int64_t* resident) override;
  bool ChooseVictims(uint32_t now, int64_t count, Victims which,
                     VictimList* victims) override;
  bool TakeVictims(uint32_t now, int64_t count, std::vector<TierVictim>* queue,
                   VictimList* victims) override;
  bool FindDirty(int64_t* cursor, int64_t most,
                 std::vector<SlotEntry>* dirty) override;
  bool ReadRows(const std::vector<int32_t>& slots, char* rows) override;
  bool Admit(const Exchange& exchange, uint32_t now,
             VictimList* victims) override;
  void EndStage(bool none_reserved) override;

 private:
  SlotState StateOf(int32_t slot) const {
    return static_cast<SlotState>(view_.residency[slot].state);
  }
  void Describe(std::vector<int32_t> slots, VictimList* victims) const;

  Parallel* const parallel_;
  const TableView& view_;
  const TableRules& rules_;
  const IdsView& ids_;
  TableStore* const store_;
  std::shared_ptr<StagedBatch> staged_;
  int64_t touched_ = 0;
};

}  // namespace oneemb
