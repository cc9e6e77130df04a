#include "cuda/gpu_tier.h"

#include <algorithm>
#include <cstring>

#include "core/counters.h"

namespace oneemb::gpu {
namespace {

constexpr int64_t kRowPiece = StreamCaller::kTransferBytes;
// Slots that are looked at, or described, at once.
constexpr int64_t kSlots = int64_t{1} << 18;

uint64_t DigestOf(const IdsView& ids, uint32_t checksum) {
  return (static_cast<uint64_t>(ids.size) << 32) | checksum;
}

// The age such that all older slots together are fewer than `count`, and with
// those of that age at least as many. 0 when there are not as many.
uint32_t ThresholdAge(const std::vector<uint32_t>& bins, int64_t count,
                      int64_t* older) {
  *older = 0;
  for (uint32_t age = kOldestAge; age > 0; --age) {
    if (*older + bins[age] >= count) return age;
    *older += bins[age];
  }
  return 0;
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
  space.descriptions = workspace->Take<SlotDescription>(kSlots);
  space.rows = workspace->Take<char>(2 * kRowPiece);
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

bool GpuTier::Wait() { return Ok(cudaStreamSynchronize(stream_)); }

int64_t GpuTier::used() const {
  return static_cast<int64_t>(counters()[kSlotsUsed]);
}

int64_t GpuTier::chunk_rows() const {
  return std::min(kSlots, kRowPiece / row_bytes());
}

// While one piece is copied out of pinned memory, the next is on its way there.
bool GpuTier::ToHost(const void* device, int64_t bytes, void* host) {
  constexpr int64_t kPiece = StreamCaller::kTransferBytes;
  const char* const from = static_cast<const char*>(device);
  char* const to = static_cast<char*>(host);
  int64_t copied = 0;
  int64_t asked = 0;
  const auto ask = [&](int piece) {
    const int64_t size = std::min(kPiece, bytes - asked);
    const bool ok = Ok(cudaMemcpyAsync(caller_->transfer(piece), from + asked,
                                       static_cast<size_t>(size),
                                       cudaMemcpyDeviceToHost, stream_));
    asked += size;
    return ok;
  };
  if (bytes > 0 && !ask(0)) return false;
  for (int piece = 0; copied < bytes; piece ^= 1) {
    if (!Wait()) return false;
    const int64_t ready = asked;
    if (asked < bytes && !ask(piece ^ 1)) return false;
    std::memcpy(to + copied, caller_->transfer(piece),
                static_cast<size_t>(ready - copied));
    copied = ready;
  }
  return true;
}

bool GpuTier::ToDevice(const void* host, int64_t bytes, void* device) {
  constexpr int64_t kPiece = StreamCaller::kTransferBytes;
  int piece = 0;
  for (int64_t done = 0; done < bytes; piece ^= 1) {
    const int64_t size = std::min(kPiece, bytes - done);
    std::memcpy(caller_->transfer(piece), static_cast<const char*>(host) + done,
                static_cast<size_t>(size));
    // The other piece is free when what was asked for before is done.
    if (done > 0 && !Wait()) return false;
    if (!Ok(cudaMemcpyAsync(static_cast<char*>(device) + done,
                            caller_->transfer(piece), static_cast<size_t>(size),
                            cudaMemcpyHostToDevice, stream_))) {
      return false;
    }
    done += size;
  }
  return Wait();
}

bool GpuTier::FindMissing(const uint32_t* now, std::vector<Key>* missing,
                          PlaceState* state) {
  PlaceArgs place{};
  if (!Ok(gpu::FindMissing(stream_, view_, rules_, ids_, now, space_.find,
                           &place)) ||
      !ToHost(place.state, sizeof(*state), state)) {
    return false;
  }
  std::vector<NewKey> keys(state->num_new);
  if (!ToHost(place.new_keys,
              static_cast<int64_t>(keys.size() * sizeof(NewKey)),
              keys.data())) {
    return false;
  }
  missing->reserve(keys.size());
  for (const NewKey& key : keys) missing->push_back({key.id, key.table});
  return true;
}

bool GpuTier::Digest(uint64_t* digest) {
  std::vector<Key> missing;
  PlaceState state{};
  if (!FindMissing(nullptr, &missing, &state)) return false;
  *digest = DigestOf(ids_, state.checksum);
  return true;
}

bool GpuTier::FindMissing(std::vector<Key>* missing) {
  PlaceState state{};
  return FindMissing(nullptr, missing, &state);
}

bool GpuTier::FindMissingAndTouch(uint32_t now, std::vector<Key>* missing,
                                  int64_t* resident, uint64_t* digest) {
  PlaceState state{};
  if (!ToDevice(&now, sizeof(now), space_.words) ||
      !FindMissing(space_.words, missing, &state)) {
    return false;
  }
  *resident = state.resident;
  *digest = DigestOf(ids_, state.checksum);
  return true;
}

bool GpuTier::Collect(int64_t first, int64_t end, const SlotFilter& filter,
                      int64_t most, std::vector<int32_t>* slots) {
  if (most <= 0 || first >= end) return true;
  uint32_t found = 0;
  if (!Ok(CollectSlots(stream_, view_, first, end, filter, most, space_.collect,
                       space_.slots, space_.words)) ||
      !ToHost(space_.words, sizeof(found), &found)) {
    return false;
  }
  const auto before = slots->size();
  const auto count = std::min<int64_t>(found, most);
  slots->resize(before + static_cast<size_t>(count));
  return ToHost(space_.slots, count * int64_t{sizeof(int32_t)},
                slots->data() + before);
}

bool GpuTier::ChooseVictims(uint32_t now, int64_t count, Victims which,
                            std::vector<int32_t>* slots) {
  slots->clear();
  if (count <= 0 || used() == 0) return true;
  std::vector<uint32_t> bins(kOldestAge + 1);
  if (!Ok(CountAges(stream_, view_, used(), now, which, space_.bins)) ||
      !ToHost(space_.bins, static_cast<int64_t>(bins.size() * sizeof(uint32_t)),
              bins.data())) {
    return false;
  }
  int64_t older = 0;
  const uint32_t age = ThresholdAge(bins, count, &older);
  if (!Collect(0, used(), {SlotFilter::kOlder, now, age, which}, older,
               slots)) {
    return false;
  }
  if (age == 0) return true;
  if (!Collect(0, used(), {SlotFilter::kAged, now, age, which}, count - older,
               slots)) {
    return false;
  }
  std::inplace_merge(slots->begin(),
                     slots->begin() + static_cast<std::ptrdiff_t>(older),
                     slots->end());
  return true;
}

// A look at all slots is quick here: nothing is kept of it.
bool GpuTier::TakeVictims(uint32_t now, int64_t count,
                          std::vector<TierVictim>* /*queue*/,
                          std::vector<int32_t>* slots) {
  return ChooseVictims(now, count, Victims::kAny, slots);
}

bool GpuTier::FindDirty(std::vector<int32_t>* slots) {
  for (int64_t first = 0; first < used(); first += kSlots) {
    const int64_t end = std::min(first + kSlots, used());
    if (!Collect(first, end, {SlotFilter::kDirty, 0, 0, Victims::kAny}, kSlots,
                 slots)) {
      return false;
    }
  }
  return true;
}

bool GpuTier::Describe(const std::vector<int32_t>& slots,
                       std::vector<SlotEntry>* entries) {
  const auto count = static_cast<int64_t>(slots.size());
  std::vector<SlotDescription> found(slots.size());
  for (int64_t first = 0; first < count; first += kSlots) {
    const int64_t size = std::min(kSlots, count - first);
    if (!ToDevice(slots.data() + first, size * int64_t{sizeof(int32_t)},
                  space_.slots) ||
        !Ok(DescribeSlots(stream_, view_, space_.slots, size,
                          space_.descriptions)) ||
        !ToHost(space_.descriptions, size * int64_t{sizeof(SlotDescription)},
                found.data() + first)) {
      return false;
    }
  }
  entries->reserve(slots.size());
  for (const SlotDescription& slot : found) {
    entries->push_back({{slot.id, static_cast<uint16_t>(slot.table)},
                        static_cast<SlotState>(slot.state)});
  }
  return true;
}

bool GpuTier::ReadRows(const int32_t* slots, int64_t count, char* rows) {
  for (int64_t first = 0; first < count; first += chunk_rows()) {
    const int64_t size = std::min(chunk_rows(), count - first);
    if (!ToDevice(slots + first, size * int64_t{sizeof(int32_t)},
                  space_.slots) ||
        !Ok(CopyRowsOut(stream_, view_, space_.slots, size,
                        reinterpret_cast<uint32_t*>(space_.rows))) ||
        !ToHost(space_.rows, size * row_bytes(), rows + first * row_bytes())) {
      return false;
    }
  }
  return true;
}

bool GpuTier::Evict(const std::vector<int32_t>& slots) {
  const auto count = static_cast<int64_t>(slots.size());
  return ToDevice(slots.data(), count * int64_t{sizeof(int32_t)},
                  space_.slots) &&
         Ok(EvictSlots(stream_, view_, space_.slots, count)) && Wait();
}

bool GpuTier::Admit(const std::vector<Admission>& admissions, uint32_t now,
                    const char* rows) {
  if (admissions.empty()) return true;
  std::vector<SlotAdmission> keys;
  std::vector<int64_t> from;
  std::vector<int32_t> to;
  keys.reserve(admissions.size());
  for (const Admission& a : admissions) {
    keys.push_back(
        {a.key.id, a.key.table, static_cast<uint16_t>(a.state), a.slot});
    if (a.state != kSlotClean) continue;
    from.push_back(a.row);
    to.push_back(a.slot);
  }
  const auto count = static_cast<int64_t>(keys.size());
  return ToDevice(keys.data(), count * int64_t{sizeof(SlotAdmission)},
                  space_.admissions) &&
         Ok(AdmitKeys(stream_, view_, space_.admissions, count, now)) &&
         PutRows(rows, from, to, view_.rows);
}

// Rows go to pinned memory one by one, to the device together, and from there
// to their places, while the next ones are on their way.
bool GpuTier::PutRows(const char* rows, const std::vector<int64_t>& from,
                      const std::vector<int32_t>& to, uint32_t* array) {
  TableView view = view_;
  view.rows = array;
  const auto count = static_cast<int64_t>(to.size());
  if (!ToDevice(to.data(), count * int64_t{sizeof(int32_t)}, space_.slots)) {
    return false;
  }
  int piece = 0;
  for (int64_t first = 0; first < count; first += chunk_rows(), piece ^= 1) {
    const int64_t size = std::min(chunk_rows(), count - first);
    char* const pinned = caller_->transfer(piece);
    for (int64_t i = 0; i < size; ++i) {
      std::memcpy(pinned + i * row_bytes(),
                  rows + from[static_cast<size_t>(first + i)] * row_bytes(),
                  static_cast<size_t>(row_bytes()));
    }
    if (first > 0 && !Wait()) return false;
    char* const staged = space_.rows + piece * kRowPiece;
    if (!Ok(cudaMemcpyAsync(staged, pinned,
                            static_cast<size_t>(size * row_bytes()),
                            cudaMemcpyHostToDevice, stream_)) ||
        !Ok(CopyRowsIn(stream_, view, space_.slots + first, size,
                       reinterpret_cast<const uint32_t*>(staged)))) {
      return false;
    }
  }
  return Wait();
}

}  // namespace oneemb::gpu
