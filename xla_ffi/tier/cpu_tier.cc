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

bool CpuTier::ChooseVictims(uint32_t now, int64_t count, Victims which,
                            std::vector<int32_t>* slots) {
  *slots = oneemb::ChooseVictims(view_, now, count, which);
  return true;
}

bool CpuTier::TakeVictims(uint32_t now, int64_t count,
                          std::vector<TierVictim>* queue,
                          std::vector<int32_t>* slots) {
  *slots = oneemb::TakeVictims(view_, now, count, queue);
  return true;
}

bool CpuTier::FindDirty(std::vector<int32_t>* slots) {
  const auto used = static_cast<int64_t>(view_.counters[kSlotsUsed]);
  for (int64_t slot = 0; slot < used; ++slot) {
    if (view_.residency[slot].state != kSlotDirty) continue;
    slots->push_back(static_cast<int32_t>(slot));
  }
  return true;
}

bool CpuTier::Describe(const std::vector<int32_t>& slots,
                       std::vector<SlotEntry>* entries) {
  entries->reserve(slots.size());
  for (const int32_t slot : slots) {
    entries->push_back({SlotKey(view_, slot),
                        static_cast<SlotState>(view_.residency[slot].state)});
  }
  return true;
}

bool CpuTier::ReadRows(const int32_t* slots, int64_t count, char* rows) {
  ForRows(parallel_, count, [&](int64_t i) {
    std::memcpy(rows + i * row_bytes(), view_.Row(slots[i]),
                static_cast<size_t>(row_bytes()));
  });
  return true;
}

bool CpuTier::Evict(const std::vector<int32_t>& slots) {
  for (const int32_t slot : slots) EvictSlot(view_, slot);
  return true;
}

bool CpuTier::Admit(const std::vector<Admission>& admissions, uint32_t now,
                    const char* rows) {
  for (const Admission& a : admissions) {
    AdmitKey(view_, a.key, a.slot, a.state, now);
  }
  ForRows(parallel_, static_cast<int64_t>(admissions.size()), [&](int64_t i) {
    const Admission& a = admissions[static_cast<size_t>(i)];
    if (a.state != kSlotClean) return;
    std::memcpy(view_.Row(a.slot), rows + a.row * row_bytes(),
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
