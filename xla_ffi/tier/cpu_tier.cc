#include "tier/cpu_tier.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/counters.h"
#include "cpu/ids_digest.h"
#include "cpu/memory.h"
#include "cpu/tier.h"

namespace oneemb {
namespace {

// Rows that a task copies at least.
constexpr int64_t kCopyGrain = 256;

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
  *digest = DigestBatch(ids_);
  return true;
}

bool CpuTier::FindMissingAndTouch(uint32_t now, MissingKeys* missing,
                                  uint64_t* digest) {
  // The memory of the last batch serves this one.
  store_->SetStaged(nullptr);
  staged_ = std::make_shared<StagedBatch>(ids_);
  if (!staged_->ok()) return false;
  TierBatch batch{staged_->digests(), staged_->slots(), 0, 0};
  if (!oneemb::FindMissingAndTouch(parallel_, view_, rules_.keys, ids_, now,
                                   &missing->memory, &batch)) {
    return false;
  }
  missing->UseMemory();
  touched_ = batch.touched;
  *digest = batch.digest;
  return true;
}

bool CpuTier::FindMissingAhead(MissingKeys* missing) {
  const Scratch slots(ids_.size * int64_t{sizeof(int32_t)});
  if (!slots.ok()) return false;
  TierBatch batch{nullptr, slots.As<int32_t>(), 0, 0};
  if (!oneemb::FindMissingAndTouch(parallel_, view_, rules_.keys, ids_,
                                   AnnouncedClock(counters()[kStaged]),
                                   &missing->memory, &batch)) {
    return false;
  }
  missing->UseMemory();
  return true;
}

bool CpuTier::CountTouched(int64_t* resident) {
  *resident = touched_;
  return true;
}

void CpuTier::Describe(std::vector<int32_t> slots, VictimList* victims) const {
  victims->Clear();
  victims->count = static_cast<int64_t>(slots.size());
  for (const int32_t slot : slots) {
    const SlotState state = StateOf(slot);
    victims->reserved += state == kSlotReserved ? 1 : 0;
    if (state != kSlotDirty) continue;
    victims->dirty.push_back(SlotKey(view_, slot));
    victims->dirty_slots.push_back(slot);
  }
  victims->slots = std::move(slots);
}

bool CpuTier::ChooseVictims(uint32_t now, int64_t count, Victims which,
                            VictimList* victims) {
  Describe(oneemb::ChooseVictims(view_, now, count, which), victims);
  return true;
}

bool CpuTier::TakeVictims(uint32_t now, int64_t count,
                          std::vector<TierVictim>* queue, VictimList* victims) {
  Describe(oneemb::TakeVictims(view_, now, count, queue), victims);
  return true;
}

bool CpuTier::FindDirty(int64_t* cursor, int64_t most,
                        std::vector<SlotEntry>* dirty) {
  const int64_t used = view_.slots_used();
  dirty->clear();
  for (; *cursor < used && static_cast<int64_t>(dirty->size()) < most;
       ++*cursor) {
    const auto slot = static_cast<int32_t>(*cursor);
    if (StateOf(slot) == kSlotDirty) {
      dirty->push_back({slot, SlotKey(view_, slot)});
    }
  }
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

bool CpuTier::Admit(const Exchange& e, uint32_t now, VictimList* list) {
  const VictimList& victims = *list;
  const int64_t count = std::min(e.keys.size, victims.count + e.num_unused);
  if (e.dirty_rows->size() > 0) {
    (void)ReadRows(victims.dirty_slots, e.dirty_rows->data());
  }
  for (const int32_t slot : victims.slots) EvictSlot(view_, slot);
  const auto slot_of = [&](int64_t i) {
    return i < victims.count
               ? victims.slots[static_cast<size_t>(i)]
               : static_cast<int32_t>(e.first_unused + i - victims.count);
  };
  for (int64_t i = 0; i < count; ++i) {
    AdmitKey(view_, e.keys[i], slot_of(i),
             e.rows[i] == nullptr ? kSlotReserved : kSlotClean, now);
  }
  ForRows(parallel_, count, [&](int64_t i) {
    if (e.rows[i] == nullptr) return;
    std::memcpy(view_.Row(slot_of(i)), e.rows[i],
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
