#include "cpu/tier.h"

#include <algorithm>

#include "core/counters.h"

namespace oneemb {
namespace {

// A slot that may be evicted.
struct Candidate {
  uint32_t age;
  int32_t slot;

  // Whether it is evicted before `other`.
  bool Before(const Candidate& other) const {
    return age != other.age ? age > other.age : slot < other.slot;
  }
};

// Ages from here on fall into one bin of the histogram.
constexpr uint32_t kOldest = 65535;

bool MayEvict(const TableView& table, int64_t slot, Victims which) {
  return which == Victims::kAny || table.residency[slot].state != kSlotDirty;
}

// The bin such that all older slots together are fewer than `count`, and with
// the bin's own at least as many. 0 when there are not as many.
uint32_t ThresholdBin(const std::vector<int64_t>& bins, int64_t count,
                      int64_t* older) {
  *older = 0;
  for (uint32_t bin = kOldest; bin > 0; --bin) {
    if (*older + bins[bin] >= count) return bin;
    *older += bins[bin];
  }
  return 0;
}

// Up to `count` slots that may be evicted, the first of the order.
std::vector<Candidate> FindVictims(const TableView& table, uint32_t now,
                                   int64_t count, Victims which) {
  std::vector<Candidate> victims;
  if (count <= 0) return victims;
  const int64_t used = static_cast<int64_t>(table.counters[kSlotsUsed]);
  std::vector<int64_t> bins(kOldest + 1);
  const auto bin_of = [&](int64_t slot) {
    return std::min(now - table.clock[slot], kOldest);
  };
  for (int64_t slot = 0; slot < used; ++slot) {
    if (MayEvict(table, slot, which)) ++bins[bin_of(slot)];
  }
  int64_t older = 0;
  const uint32_t threshold = ThresholdBin(bins, count, &older);
  std::vector<Candidate> last;  // of the threshold's bin
  victims.reserve(static_cast<size_t>(std::min(count, used)));
  last.reserve(static_cast<size_t>(threshold == 0 ? 0 : bins[threshold]));
  for (int64_t i = 0; i < used; ++i) {
    const uint32_t bin = bin_of(i);
    if (bin == 0 || bin < threshold || !MayEvict(table, i, which)) continue;
    const int32_t slot = static_cast<int32_t>(i);
    const Candidate candidate{now - table.clock[i], slot};
    (bin > threshold ? victims : last).push_back(candidate);
  }
  const int64_t rest =
      std::min(count - older, static_cast<int64_t>(last.size()));
  std::nth_element(
      last.begin(), last.begin() + rest, last.end(),
      [](const Candidate& a, const Candidate& b) { return a.Before(b); });
  victims.insert(victims.end(), last.begin(), last.begin() + rest);
  return victims;
}

}  // namespace

std::vector<int32_t> ChooseVictims(const TableView& table, uint32_t now,
                                   int64_t count, Victims which) {
  std::vector<int32_t> victims;
  for (const Candidate& victim : FindVictims(table, now, count, which)) {
    victims.push_back(victim.slot);
  }
  std::sort(victims.begin(), victims.end());
  return victims;
}

// The queue is in reverse order of eviction. Slots that are not in it had later
// clocks when it was made, and have them still. A slot whose clock is another
// by now was wanted again, or has another key.
std::vector<int32_t> TakeVictims(const TableView& table, uint32_t now,
                                 int64_t count,
                                 std::vector<TierVictim>* queue) {
  // One look finds as many as this share of all slots.
  constexpr int64_t kShare = 16;
  std::vector<int32_t> victims;
  bool looked = false;
  while (static_cast<int64_t>(victims.size()) < count) {
    if (!queue->empty()) {
      const TierVictim victim = queue->back();
      queue->pop_back();
      if (table.clock[victim.slot] == victim.clock) {
        victims.push_back(victim.slot);
      }
      continue;
    }
    if (looked) break;
    looked = true;
    std::vector<Candidate> found = FindVictims(
        table, now, std::max(count, table.capacity / kShare), Victims::kAny);
    std::sort(
        found.begin(), found.end(),
        [](const Candidate& a, const Candidate& b) { return b.Before(a); });
    for (const Candidate& victim : found) {
      queue->push_back({victim.slot, now - victim.age});
    }
    victims.clear();  // those that are not evicted yet were found again
  }
  std::sort(victims.begin(), victims.end());
  return victims;
}

void EvictSlot(const TableView& table, int32_t slot) {
  SlotResidency& residency = table.residency[slot];
  const uint64_t hash = HashKey(SlotKey(table, slot));
  *table.layout_version -= LayoutTerm(hash, slot);
  EraseEntry(table.index, residency.entry, hash);
  residency = {0, kSlotFree};
}

void AdmitKey(const TableView& table, Key key, int32_t slot, SlotState state,
              uint32_t now) {
  const uint64_t hash = HashKey(key);
  // There is an entry: an index has more of them than the table has slots.
  const int64_t entry = InsertEntry(table.index, key, hash, slot);
  *table.layout_version += LayoutTerm(hash, slot);
  table.residency[slot] = {static_cast<uint32_t>(entry), state};
  table.clock[slot] = now;
}

}  // namespace oneemb
