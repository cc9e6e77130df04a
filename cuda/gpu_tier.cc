#include "cuda/gpu_tier.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "core/counters.h"
#include "store/aligned_buffer.h"
#include "store/arrival.h"

namespace oneemb::gpu {
namespace {

// Slots that are looked at, or described, at once.
constexpr int64_t kSlots = int64_t{1} << 18;

uint64_t DigestOf(const IdsView& ids, uint32_t checksum) {
  return (static_cast<uint64_t>(ids.size) << 32) | checksum;
}

}  // namespace

TierSpace TakeTierSpace(const TableRules& rules, int64_t capacity, int64_t n,
                        Workspace* workspace) {
  TierSpace space{};
  space.find = workspace->Take<char>(FindMissingSpace(rules, capacity, n));
  space.collect = TakeCollectSpace(capacity, std::max(n, kSlots), workspace);
  space.slots = workspace->Take<int32_t>(kSlots);
  space.admissions = workspace->Take<SlotAdmission>(n);
  return space;
}

int64_t TierBytes(const TableRules& rules, int64_t capacity, int64_t n) {
  Workspace workspace;
  TakeTierSpace(rules, capacity, n, &workspace);
  return workspace.used();
}

bool GpuTier::Ok(cudaError_t error) {
  if (error_ == cudaSuccess) error_ = error;
  return error == cudaSuccess;
}

// What is waited for here takes some microseconds: less than it may take until
// a thread that sleeps is woken.
bool GpuTier::Wait() {
  cudaError_t error = cudaErrorNotReady;
  while (error == cudaErrorNotReady) {
    error = NotReadyAside(cudaStreamQuery(stream_));
  }
  return Ok(error);
}

void* GpuTier::TakePinned(int64_t bytes) {
  std::vector<SourceBuffer>& pinned = kept()->pinned;
  pinned.push_back(TakeBuffer(carrier_, bytes));
  if (pinned.back() == nullptr) Ok(cudaErrorMemoryAllocation);
  return pinned.back().get();
}

bool GpuTier::CopyBytes(const void* from, int64_t bytes, void* to) {
  return Ok(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes),
                            cudaMemcpyDefault, stream_));
}

bool GpuTier::Digest(uint64_t* digest) {
  *digest = DigestOf(ids_, found_.state->checksum);
  return true;
}

void GpuTier::TakeFound(MissingKeys* missing) const {
  const PlaceState& state = *found_.state;
  missing->keys = found_.keys;
  missing->count = static_cast<int64_t>(state.num_new);
  missing->fingerprint = {{state.fingerprint[0], state.fingerprint[1]}};
}

// The stream has set the clocks by itself (CachedOperation::TellMissing).
bool GpuTier::FindMissingAhead(MissingKeys* missing) {
  TakeFound(missing);
  return true;
}

bool GpuTier::ReadMissing(MissingKeys* missing) {
  if (missing->keys != nullptr || missing->count == 0) return true;
  missing->keys = Pinned<Key>(missing->count);
  return missing->keys != nullptr &&
         Ok(CopyFound(stream_, found_.place, nullptr, missing->keys)) && Wait();
}

bool GpuTier::FindMissingAndTouch(uint32_t now, MissingKeys* missing,
                                  uint64_t* digest) {
  auto* const resident = Pinned<uint32_t>(1);
  resident_ = resident;
  TakeFound(missing);
  return resident != nullptr &&
         Ok(TouchFound(stream_, found_.place, now, resident)) &&
         Ok(counted_.Record(stream_)) && Digest(digest);
}

bool GpuTier::CountTouched(int64_t* resident) {
  if (!Ok(counted_.Await())) return false;
  *resident = *resident_;
  return true;
}

bool GpuTier::ClearSpace() {
  return std::exchange(clear_, false) ||
         Ok(ClearCollectSpace(stream_, space_.collect));
}

bool GpuTier::BeginVictims(uint32_t now, int64_t count, Victims which) {
  auto* const counts = Pinned<SlotCounts>(1);
  if (counts == nullptr) return false;
  *counts = {};
  victim_counts_ = counts;
  SourceVector<Key>& dirty =
      kept()->dirty_victims.emplace_back(SourceAllocator<Key>(memory()));
  if (count <= 0 || slots_used() == 0) {
    return Ok(CollectNothing(stream_, space_.collect));
  }
  dirty.resize(static_cast<size_t>(count));
  return ClearSpace() &&
         Ok(CollectVictims(stream_, view_, slots_used(), now, count, which,
                           space_.collect, counts, dirty.data())) &&
         Ok(counted_.Record(stream_));
}

bool GpuTier::ExpectVictims(uint32_t now, int64_t count) {
  expected_ = std::max<int64_t>(count, 0);
  return BeginVictims(now, count, Victims::kAny);
}

// How many there are, and which of them are dirty, is known when Admit waits.
bool GpuTier::ChooseVictims(uint32_t now, int64_t count, Victims which,
                            VictimList* victims) {
  victims->Clear();
  const bool begun = which == Victims::kAny && count == expected_;
  if (!begun && !BeginVictims(now, count, which)) return false;
  expected_ = -1;
  if (which == Victims::kAny)
    victims->dirty = std::move(kept()->dirty_victims.back());
  return true;
}

// A look at all slots is quick here: nothing is kept of it.
bool GpuTier::TakeVictims(uint32_t now, int64_t count,
                          std::vector<TierVictim>* /*queue*/,
                          VictimList* victims) {
  return ChooseVictims(now, count, Victims::kAny, victims);
}

bool GpuTier::FindDirty(int64_t* cursor, int64_t most,
                        std::vector<SlotEntry>* dirty) {
  dirty->clear();
  // What was needed for the slots before.
  if (!Wait()) return false;
  kept()->pinned.clear();
  most = std::min(most, kSlots);
  const CollectSpace& space = space_.collect;
  while (dirty->empty() && *cursor < slots_used()) {
    const int64_t end = std::min(*cursor + kSlots, slots_used());
    if (!ClearSpace() ||
        !Ok(CollectDirty(stream_, view_, *cursor, end, most, space))) {
      return false;
    }
    const SlotCounts* const found = ToHost(space.counts, 1);
    if (found == nullptr) return false;
    const int64_t count = std::min<int64_t>(found->all, most);
    *cursor = end;
    if (count == 0) continue;
    const SlotDescription* const slots = ToHost(space.slots, count);
    if (slots == nullptr) return false;
    for (int64_t i = 0; i < count; ++i) {
      dirty->push_back({slots[i].slot, {slots[i].id, slots[i].table}});
    }
    if (found->all > count) *cursor = dirty->back().slot + 1;
  }
  return true;
}

bool GpuTier::ReadRows(const std::vector<int32_t>& slots, char* rows) {
  const auto count = static_cast<int64_t>(slots.size());
  auto* const pinned = Pinned<int32_t>(count);
  if (pinned == nullptr) return false;
  std::copy(slots.begin(), slots.end(), pinned);
  return Copy(pinned, count, space_.slots) &&
         Ok(CopyRowsOut(stream_, view_, space_.slots, count,
                        reinterpret_cast<uint32_t*>(rows))) &&
         Wait();
}

// Rows that wait to be written do not take much more memory than they need,
// where there was room for many more than turned out to be dirty.
bool GpuTier::HandOver(AlignedBuffer* dirty_rows, VictimList* victims) {
  const auto bytes = static_cast<int64_t>(victims->dirty.size()) * row_bytes();
  if (bytes == 0) return true;
  SourceBuffer& near = kept()->near;
  const char* const from = near != nullptr ? near.get() : dirty_rows->data();
  AlignedBuffer too_large;
  if (2 * bytes <= dirty_rows->size()) {
    AlignedBuffer fitting;
    if (fitting.Resize(bytes, memory()).ok()) {
      victims->dirty.shrink_to_fit();
      too_large = std::exchange(*dirty_rows, std::move(fitting));
    }
  }
  if (near == nullptr) {
    if (too_large.size() > 0) {
      std::memcpy(dirty_rows->data(), from, static_cast<size_t>(bytes));
    }
    return true;
  }
  return Ok(carrier_->CopyBack(stream_, &near, bytes, dirty_rows->data(),
                               &victims->arriving));
}

// The victims are on the device still, as they were collected.
bool GpuTier::Admit(const Exchange& e, uint32_t now, VictimList* victims) {
  if (e.keys.size == 0) return true;
  // Over the bus they go later, if there is room for them here.
  SourceBuffer& near = kept()->near;
  if (e.dirty_rows->size() > 0) {
    near = carrier_->TakeNear(e.dirty_rows->size());
  }
  char* const out = near != nullptr ? near.get() : e.dirty_rows->data();
  const bool all_found =
      e.keys.size == static_cast<int64_t>(found_.state->num_new);
  const SlotExchange exchange{space_.collect,
                              reinterpret_cast<uint32_t*>(out),
                              e.first_unused,
                              e.num_unused,
                              all_found ? found_.place.new_keys : nullptr,
                              e.keys.data,
                              reinterpret_cast<const uint32_t* const*>(e.rows),
                              e.keys.size,
                              space_.admissions,
                              now};
  if (!Ok(ExchangeSlots(stream_, view_, exchange))) return false;
  // Rows that come to memory of the host are to be there.
  const bool here = near == nullptr && e.dirty_rows->size() > 0;
  if (!(here ? Wait() : Ok(counted_.Await()))) return false;
  victims->count = victim_counts_->all;
  victims->reserved = victim_counts_->reserved;
  victims->dirty.resize(victim_counts_->dirty);
  return HandOver(e.dirty_rows, victims);
}

void GpuTier::LetGo(TakenRows* rows) {
  // Called where nothing may fail; and twice, of which the second time has
  // none.
  if (kept_ != nullptr && !rows->empty()) kept_->rows = std::move(*rows);
  rows->Clear();
}

bool GpuTier::PutRows(const SourceVector<const char*>& rows,
                      const std::vector<int32_t>& to, uint32_t* array) {
  const auto count = static_cast<int64_t>(to.size());
  auto* const pinned = Pinned<int32_t>(count);
  if (pinned == nullptr) return false;
  std::copy(to.begin(), to.end(), pinned);
  const auto* const from =
      reinterpret_cast<const uint32_t* const*>(rows.data());
  return Ok(gpu::PutRows(stream_, from, pinned, count, view_.row_words,
                         array)) &&
         Wait();
}

}  // namespace oneemb::gpu
