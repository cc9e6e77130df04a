#include "cpu/tier.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <tuple>

#include "core/counters.h"
#include "cpu/insert.h"
#include "cpu/memory.h"
#include "cpu/probe.h"

namespace oneemb {
namespace {

constexpr int64_t kGrain = 2048;

// Searches all ids; seen(slot) for each that is there, on several threads.
template <class Seen>
void ProbeAll(Parallel* parallel, const IndexView& index, const KeyRules& rules,
              const IdsView& ids, int32_t* slots, const Seen& seen) {
  const int64_t tasks = NumTasks(*parallel, ids.size, kGrain);
  parallel->Run(tasks, [&](int64_t task) {
    const auto ahead = [](const ProbeItem&) {};
    const auto emit = [&](const ProbeItem& item) {
      slots[item.position] = item.slot;
      if (item.slot >= 0) seen(item.slot);
    };
    Probe(index, rules, ids, TaskRange(ids.size, task, tasks), ahead, emit);
  });
}

// The keys at the positions that are kSlotMissing, each once, by an index that
// lives for this call.
bool DistinctMissing(const KeyRules& rules, const IdsView& ids,
                     const int32_t* slots, std::vector<Key>* missing) {
  const int64_t most = std::count(slots, slots + ids.size, kSlotMissing);
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
  Key key;
  int32_t slot;

  // Whether it is evicted before `other`.
  bool Before(const Candidate& other) const {
    return std::tuple(~age, key.table, key.id) <
           std::tuple(~other.age, other.key.table, other.key.id);
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

}  // namespace

bool FindMissing(Parallel* parallel, const IndexView& index,
                 const KeyRules& rules, const IdsView& ids,
                 std::vector<Key>* missing) {
  const Scratch slots(ids.size * int64_t{sizeof(int32_t)});
  if (!slots.ok()) return false;
  ProbeAll(parallel, index, rules, ids, slots.As<int32_t>(), [](int32_t) {});
  return DistinctMissing(rules, ids, slots.As<int32_t>(), missing);
}

bool FindMissingAndTouch(Parallel* parallel, const TableView& table,
                         const KeyRules& rules, const IdsView& ids,
                         uint32_t now, std::vector<Key>* missing,
                         int64_t* resident) {
  const Scratch slots(ids.size * int64_t{sizeof(int32_t)});
  if (!slots.ok()) return false;
  std::atomic<int64_t> touched{0};
  // Several positions, on several threads, may have one slot: the thread that
  // sees the old clock counts it.
  const auto touch = [&](int32_t slot) {
    uint32_t* const clock = &table.clock[slot];
    if (__atomic_load_n(clock, __ATOMIC_RELAXED) == now) return;
    if (__atomic_exchange_n(clock, now, __ATOMIC_RELAXED) != now) {
      touched.fetch_add(1, std::memory_order_relaxed);
    }
  };
  ProbeAll(parallel, table.index, rules, ids, slots.As<int32_t>(), touch);
  *resident = touched;
  return DistinctMissing(rules, ids, slots.As<int32_t>(), missing);
}

std::vector<int32_t> ChooseVictims(const TableView& table, uint32_t now,
                                   int64_t count, Victims which) {
  std::vector<int32_t> victims;
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
  std::vector<Candidate> candidates;
  victims.reserve(static_cast<size_t>(std::min(count, used)));
  candidates.reserve(static_cast<size_t>(threshold == 0 ? 0 : bins[threshold]));
  for (int64_t i = 0; i < used; ++i) {
    const uint32_t bin = bin_of(i);
    if (bin == 0 || bin < threshold || !MayEvict(table, i, which)) continue;
    const int32_t slot = static_cast<int32_t>(i);
    if (bin > threshold) {
      victims.push_back(slot);
    } else {
      candidates.push_back({now - table.clock[i], SlotKey(table, slot), slot});
    }
  }
  const int64_t rest =
      std::min(count - older, static_cast<int64_t>(candidates.size()));
  std::nth_element(
      candidates.begin(), candidates.begin() + rest, candidates.end(),
      [](const Candidate& a, const Candidate& b) { return a.Before(b); });
  for (int64_t i = 0; i < rest; ++i) {
    victims.push_back(candidates[static_cast<size_t>(i)].slot);
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
