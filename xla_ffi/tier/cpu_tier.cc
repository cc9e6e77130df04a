#include "tier/cpu_tier.h"

#include <cstring>

#include "core/counters.h"
#include "cpu/checksum.h"
#include "cpu/tier.h"

namespace oneemb {
namespace {

// Rows that a task copies at least.
constexpr int64_t kCopyGrain = 256;

uint64_t DigestOf(const IdsView& ids, uint32_t checksum) {
  return (static_cast<uint64_t>(ids.size) << 32) | checksum;
}

// Calls body(i) for every row, on several threads.
template <class Body>
void ForRows(Parallel* parallel, int64_t count, const Body& body) {
  const int64_t tasks = NumTasks(*parallel, count, kCopyGrain);
  parallel->Run(tasks, [&](int64_t task) {
    const Range range = TaskRange(count, task, tasks);
    for (int64_t i = range.begin; i < range.end; ++i) body(i);
  });
}

}  // namespace

bool CpuTier::Digest(uint64_t* digest) {
  *digest = DigestOf(ids_, ScanIds(ids_, {0, ids_.size}));
  return true;
}

bool CpuTier::FindMissing(std::vector<Key>* missing) {
  return oneemb::FindMissing(parallel_, view_.index, rules_.keys, ids_,
                             missing);
}

bool CpuTier::FindMissingAndTouch(uint32_t now, std::vector<Key>* missing,
                                  int64_t* resident, uint64_t* digest) {
  // The memory of the last batch serves this one.
  store_->SetStaged(nullptr);
  staged_ = std::make_shared<StagedBatch>(ids_);
  if (!staged_->ok()) return false;
  TierBatch batch{staged_->words(), staged_->slots(), 0, 0};
  if (!oneemb::FindMissingAndTouch(parallel_, view_, rules_.keys, ids_, now,
                                   missing, &batch)) {
    return false;
  }
  *resident = batch.resident;
  *digest = DigestOf(ids_, batch.digest);
  return true;
}

void CpuTier::Describe(const std::vector<int32_t>& slots,
                       std::vector<SlotEntry>* entries) const {
  entries->clear();
  entries->reserve(slots.size());
  for (const int32_t slot : slots) {
    entries->push_back({slot, SlotKey(view_, slot),
                        static_cast<SlotState>(view_.residency[slot].state)});
  }
}

bool CpuTier::ChooseVictims(uint32_t now, int64_t count, Victims which,
                            std::vector<SlotEntry>* victims) {
  Describe(oneemb::ChooseVictims(view_, now, count, which), victims);
  return true;
}

bool CpuTier::TakeVictims(uint32_t now, int64_t count,
                          std::vector<TierVictim>* queue,
                          std::vector<SlotEntry>* victims) {
  Describe(oneemb::TakeVictims(view_, now, count, queue), victims);
  return true;
}

bool CpuTier::FindDirty(int64_t* cursor, int64_t most,
                        std::vector<SlotEntry>* dirty) {
  const auto used = static_cast<int64_t>(view_.counters[kSlotsUsed]);
  std::vector<int32_t> slots;
  for (; *cursor < used && static_cast<int64_t>(slots.size()) < most;
       ++*cursor) {
    if (view_.residency[*cursor].state != kSlotDirty) continue;
    slots.push_back(static_cast<int32_t>(*cursor));
  }
  Describe(slots, dirty);
  return true;
}

bool CpuTier::ReadRows(const std::vector<int32_t>& slots, char* rows) {
  ForRows(parallel_, static_cast<int64_t>(slots.size()), [&](int64_t i) {
    std::memcpy(rows + i * row_bytes(),
                view_.Row(slots[static_cast<size_t>(i)]),
                static_cast<size_t>(row_bytes()));
  });
  return true;
}

bool CpuTier::Evict(const std::vector<SlotEntry>& victims) {
  for (const SlotEntry& victim : victims) EvictSlot(view_, victim.slot);
  return true;
}

bool CpuTier::Admit(const Admissions& a, uint32_t now) {
  for (int64_t i = 0; i < a.count; ++i) {
    AdmitKey(view_, a.keys[i], a.slots[i],
             a.rows[i] == nullptr ? kSlotReserved : kSlotClean, now);
  }
  ForRows(parallel_, a.count, [&](int64_t i) {
    if (a.rows[i] == nullptr) return;
    std::memcpy(view_.Row(a.slots[i]), a.rows[i],
                static_cast<size_t>(row_bytes()));
  });
  FindAdmitted(view_.index, rules_.keys, ids_, staged_->slots());
  return true;
}

void CpuTier::EndStage(bool none_reserved) {
  staged_->Finish(*view_.layout_version, *generation(), none_reserved);
  store_->SetStaged(staged_);
}

}  // namespace oneemb
