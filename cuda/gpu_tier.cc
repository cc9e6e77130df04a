#include "cuda/gpu_tier.h"

#include <algorithm>

#include "core/counters.h"
#include "store/crew.h"

namespace oneemb::gpu {
namespace {

// Slots that are looked at, or described, at once.
constexpr int64_t kSlots = int64_t{1} << 18;

uint64_t DigestOf(const IdsView& ids, uint32_t checksum) {
  return (static_cast<uint64_t>(ids.size) << 32) | checksum;
}

// The age such that all older slots together are fewer than `count`, and with
// those of that age at least as many. 0 when there are not as many.
uint32_t ThresholdAge(const uint32_t* bins, int64_t count, int64_t* older) {
  *older = 0;
  for (uint32_t age = kOldestAge; age > 0; --age) {
    if (*older + bins[age] >= count) return age;
    *older += bins[age];
  }
  return 0;
}

// Calls body(i) for each 0 <= i < count, maybe on several threads.
template <class Body>
void ForEach(int64_t count, const Body& body) {
  constexpr int64_t kGrain = 4096;
  Crew::Get()->ForRanges(count, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) body(static_cast<size_t>(i));
  });
}

SlotEntry EntryOf(const SlotDescription& slot) {
  return {slot.slot, {slot.id, slot.table}, static_cast<SlotState>(slot.state)};
}

}  // namespace

TierSpace TakeTierSpace(const TableRules& rules, int64_t capacity, int64_t n,
                        Workspace* workspace) {
  TierSpace space{};
  space.find = workspace->Take<char>(FindMissingSpace(rules, capacity, n));
  space.collect = workspace->Take<char>(CollectSpace(capacity));
  space.bins = workspace->Take<uint32_t>(kOldestAge + 1);
  space.words = workspace->Take<uint32_t>(4);
  space.slots = workspace->Take<int32_t>(std::max(n, kSlots));
  space.admissions = workspace->Take<SlotAdmission>(n);
  space.descriptions = workspace->Take<SlotDescription>(std::max(n, kSlots));
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
  while (error == cudaErrorNotReady) error = cudaStreamQuery(stream_);
  return Ok(error);
}

int64_t GpuTier::used() const {
  return static_cast<int64_t>(counters()[kSlotsUsed]);
}

void* GpuTier::TakePinned(int64_t bytes) {
  pinned_.push_back(TakeBuffer(PinnedBuffers(), bytes));
  if (pinned_.back() == nullptr) Ok(cudaErrorMemoryAllocation);
  return pinned_.back().get();
}

bool GpuTier::CopyBytes(const void* from, int64_t bytes, void* to) {
  return Ok(cudaMemcpyAsync(to, from, static_cast<size_t>(bytes),
                            cudaMemcpyDefault, stream_));
}

bool GpuTier::FindMissing(const uint32_t* now, std::vector<Key>* missing,
                          PlaceState* state) {
  PlaceArgs place{};
  if (!Ok(gpu::FindMissing(stream_, view_, rules_, ids_, now, space_.find,
                           &place))) {
    return false;
  }
  const PlaceState* const found = ToHost(place.state, 1);
  if (found == nullptr) return false;
  *state = *found;
  const auto count = static_cast<int64_t>(state->num_new);
  if (count == 0) return true;
  const NewKey* const keys = ToHost(place.new_keys, count);
  if (keys == nullptr) return false;
  ToKeys(*state, keys, missing);
  return true;
}

bool GpuTier::Digest(uint64_t* digest) {
  std::vector<Key> missing;
  PlaceState state{};
  if (!FindMissing(nullptr, &missing, &state)) return false;
  *digest = DigestOf(ids_, state.checksum);
  return true;
}

void GpuTier::ToKeys(const PlaceState& state, const NewKey* found,
                     std::vector<Key>* keys) {
  keys->resize(state.num_new);
  ForEach(static_cast<int64_t>(state.num_new),
          [&](size_t i) { (*keys)[i] = {found[i].id, found[i].table}; });
}

bool GpuTier::FindMissing(std::vector<Key>* missing) {
  if (found_state_ != nullptr) {
    ToKeys(*found_state_, found_keys_, missing);
    return true;
  }
  PlaceState state{};
  return FindMissing(nullptr, missing, &state);
}

bool GpuTier::FindMissingAndTouch(uint32_t now, std::vector<Key>* missing,
                                  int64_t* resident, uint64_t* digest) {
  PlaceState state{};
  uint32_t* const clock = Pinned<uint32_t>(1);
  if (clock == nullptr) return false;
  *clock = now;
  if (!Copy(clock, 1, space_.words) ||
      !FindMissing(space_.words, missing, &state)) {
    return false;
  }
  *resident = state.resident;
  *digest = DigestOf(ids_, state.checksum);
  return true;
}

bool GpuTier::Collect(int64_t first, int64_t end, const SlotFilter& filter,
                      int64_t most, SlotDescription* slots) {
  return most <= 0 || first >= end ||
         Ok(CollectSlots(stream_, view_, first, end, filter, most,
                         space_.collect, slots, space_.words));
}

// Those older than some age all go, and of those of that age the first slots.
bool GpuTier::ChooseVictims(uint32_t now, int64_t count, Victims which,
                            std::vector<SlotEntry>* victims) {
  victims->clear();
  if (count <= 0 || used() == 0) return true;
  if (!Ok(CountAges(stream_, view_, used(), now, which, space_.bins))) {
    return false;
  }
  const uint32_t* const bins = ToHost(space_.bins, kOldestAge + 1);
  if (bins == nullptr) return false;
  int64_t older = 0;
  const uint32_t age = ThresholdAge(bins, count, &older);
  const int64_t aged =
      age == 0 ? 0 : std::min<int64_t>(count - older, bins[age]);
  SlotDescription* const slots = space_.descriptions;
  if (!Collect(0, used(), {SlotFilter::kOlder, now, age, which}, older,
               slots) ||
      !Collect(0, used(), {SlotFilter::kAged, now, age, which}, aged,
               slots + older)) {
    return false;
  }
  if (older + aged == 0) return true;
  const SlotDescription* const found = ToHost(slots, older + aged);
  if (found == nullptr) return false;
  victims->resize(static_cast<size_t>(older + aged));
  if (older == 0 || aged == 0) {
    ForEach(older + aged, [&](size_t i) { (*victims)[i] = EntryOf(found[i]); });
    return true;
  }
  const SlotDescription* next[] = {found, found + older};
  const SlotDescription* const end[] = {found + older, found + older + aged};
  for (SlotEntry& victim : *victims) {
    const bool second = next[0] == end[0] ||
                        (next[1] != end[1] && next[1]->slot < next[0]->slot);
    victim = EntryOf(*next[second ? 1 : 0]++);
  }
  return true;
}

// A look at all slots is quick here: nothing is kept of it.
bool GpuTier::TakeVictims(uint32_t now, int64_t count,
                          std::vector<TierVictim>* /*queue*/,
                          std::vector<SlotEntry>* victims) {
  return ChooseVictims(now, count, Victims::kAny, victims);
}

bool GpuTier::FindDirty(int64_t* cursor, int64_t most,
                        std::vector<SlotEntry>* dirty) {
  dirty->clear();
  most = std::min(most, kSlots);
  while (dirty->empty() && *cursor < used()) {
    const int64_t end = std::min(*cursor + kSlots, used());
    if (!Collect(*cursor, end, {SlotFilter::kDirty, 0, 0, Victims::kAny}, most,
                 space_.descriptions)) {
      return false;
    }
    const uint32_t* const found = ToHost(space_.words, 1);
    if (found == nullptr) return false;
    const int64_t count = std::min<int64_t>(*found, most);
    *cursor = end;
    if (count == 0) continue;
    const SlotDescription* const slots = ToHost(space_.descriptions, count);
    if (slots == nullptr) return false;
    for (int64_t i = 0; i < count; ++i) dirty->push_back(EntryOf(slots[i]));
    if (*found > count) *cursor = dirty->back().slot + 1;
  }
  return true;
}

bool GpuTier::SlotsToDevice(const std::vector<int32_t>& slots) {
  const auto count = static_cast<int64_t>(slots.size());
  int32_t* const pinned = Pinned<int32_t>(count);
  if (pinned == nullptr) return false;
  std::copy(slots.begin(), slots.end(), pinned);
  return Copy(pinned, count, space_.slots);
}

bool GpuTier::ReadRows(const std::vector<int32_t>& slots, char* rows) {
  return SlotsToDevice(slots) &&
         Ok(CopyRowsOut(stream_, view_, space_.slots,
                        static_cast<int64_t>(slots.size()),
                        reinterpret_cast<uint32_t*>(rows))) &&
         Wait();
}

bool GpuTier::Evict(const std::vector<SlotEntry>& victims) {
  std::vector<int32_t> slots;
  slots.reserve(victims.size());
  for (const SlotEntry& victim : victims) slots.push_back(victim.slot);
  return SlotsToDevice(slots) &&
         Ok(EvictSlots(stream_, view_, space_.slots,
                       static_cast<int64_t>(slots.size())));
}

// The rows go from where they are to their slots.
bool GpuTier::Admit(const Admissions& a, uint32_t now) {
  if (a.count == 0) return true;
  SlotAdmission* const pinned = Pinned<SlotAdmission>(a.count);
  if (pinned == nullptr) return false;
  ForEach(a.count, [&](size_t i) {
    pinned[i] = {a.keys[i].id, reinterpret_cast<const uint32_t*>(a.rows[i]),
                 a.slots[i], a.keys[i].table};
  });
  SlotAdmission* const there = space_.admissions;
  return Copy(pinned, a.count, there) &&
         Ok(AdmitKeys(stream_, view_, there, a.count, now)) &&
         Ok(CopyRowsIn(stream_, view_, there, a.count)) && Wait();
}

bool GpuTier::PutRows(const std::vector<const char*>& rows,
                      const std::vector<int32_t>& to, uint32_t* array) {
  const auto count = static_cast<int64_t>(to.size());
  SlotAdmission* const pinned = Pinned<SlotAdmission>(count);
  if (pinned == nullptr) return false;
  for (size_t i = 0; i < to.size(); ++i) {
    pinned[i] = {0, reinterpret_cast<const uint32_t*>(rows[i]), to[i], 0};
  }
  TableView view = view_;
  view.rows = array;
  return Copy(pinned, count, space_.admissions) &&
         Ok(CopyRowsIn(stream_, view, space_.admissions, count)) && Wait();
}

}  // namespace oneemb::gpu
