#include "cpu/tier.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "core/counters.h"
#include "cpu/checksum.h"
#include "cpu/insert.h"
#include "cpu/memory.h"
#include "cpu/probe.h"

namespace oneemb {
namespace {

constexpr int64_t kGrain = 2048;

// The keys at the positions that are kSlotMissing, `most` of them, each once,
// by an index that lives for this call.
bool DistinctMissing(const KeyRules& rules, const IdsView& ids,
                     const int32_t* slots, int64_t most,
                     std::vector<Key>* missing) {
  missing->clear();
  if (most == 0) return true;
  const int64_t num_buckets = NumBuckets(most);
  const int64_t bytes = num_buckets * int64_t{sizeof(Bucket)};
  const Scratch buckets(bytes);
  if (!buckets.ok()) return false;
  std::memset(buckets.As<void>(), 0, static_cast<size_t>(bytes));
  missing->reserve(static_cast<size_t>(most));
  InsertCursor cursor{{buckets.As<Bucket>(), num_buckets}, most, 0, 0};
  IdCursor id(ids, 0);
  for (int64_t i = 0; i < ids.size; ++i, id.Next()) {
    if (slots[i] != kSlotMissing) continue;
    const Key key = rules.MakeKey(id.id(), id.table());
    const int64_t before = cursor.num_rows;
    FindOrInsert(&cursor, key, HashKey(key));
    if (cursor.num_rows > before) missing->push_back(key);
  }
  return true;
}

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

bool FindMissingAndTouch(Parallel* parallel, const TableView& table,
                         const KeyRules& rules, const IdsView& ids,
                         uint32_t now, std::vector<Key>* missing,
                         TierBatch* batch) {
  std::atomic<int64_t> resident{0};
  std::atomic<int64_t> missed{0};
  std::atomic<uint32_t> digest{0};
  const int64_t tasks = NumTasks(*parallel, ids.size, kGrain);
  parallel->Run(tasks, [&](int64_t task) {
    const Range range = TaskRange(ids.size, task, tasks);
    const int64_t first = range.begin * ids.words_per_id;
    if (batch->words != nullptr) {
      std::copy_n(ids.words + first, range.end * ids.words_per_id - first,
                  batch->words + first);
    }
    digest += ScanIds(ids, range);
    int64_t missed_here = 0;
    int64_t resident_here = 0;
    // To read: of most positions it is set already, and threads that asked for
    // the lines of hot rows to write would take them from each other.
    const auto ahead = [&](int32_t slot) __attribute__((always_inline)) {
      if (slot >= 0) PrefetchRead(&table.clock[slot]);
    };
    const auto emit = [&](const ProbeItem& item) {
      batch->slots[item.position] = item.slot;
      missed_here += item.slot == kSlotMissing ? 1 : 0;
      if (item.slot < 0) return;
      // Several positions, on several threads, may have one slot: the thread
      // that sees the old clock counts it.
      uint32_t* const clock = &table.clock[item.slot];
      if (!IsBefore(__atomic_load_n(clock, __ATOMIC_RELAXED), now)) return;
      const bool first_here =
          __atomic_exchange_n(clock, now, __ATOMIC_RELAXED) != now;
      resident_here += first_here ? 1 : 0;
    };
    Probe(table.index, rules, ids, range, ahead, emit);
    resident += resident_here;
    missed += missed_here;
  });
  batch->resident = resident;
  batch->digest = digest;
  return DistinctMissing(rules, ids, batch->slots, missed, missing);
}

void FindAdmitted(const IndexView& index, const KeyRules& rules,
                  const IdsView& ids, int32_t* slots) {
  IdCursor id(ids, 0);
  for (int64_t i = 0; i < ids.size; ++i, id.Next()) {
    if (slots[i] != kSlotMissing) continue;
    const Key key = rules.MakeKey(id.id(), id.table());
    slots[i] = FindSlot(index, key, HashKey(key));
  }
}

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
