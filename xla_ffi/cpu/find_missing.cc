// Which rows of a batch the device tier lacks, and when the others were wanted.
#include <algorithm>
#include <atomic>
#include <cstring>

#include "core/counters.h"
#include "cpu/checksum.h"
#include "cpu/insert.h"
#include "cpu/memory.h"
#include "cpu/probe.h"
#include "cpu/tier.h"

namespace oneemb {
namespace {

constexpr int64_t kGrain = 2048;
// With up to this many slots for an id, sets of slots take less time than
// clocks that several threads set.
constexpr int64_t kSlotsPerId = 32;

// Sets each clock when its row is found.
class TouchEach {
 public:
  class Marker {
   public:
    Marker(uint32_t* clocks, uint32_t now) : clocks_(clocks), now_(now) {}

    // To read: of most positions the clock is set already, and threads that
    // asked for the lines of hot rows to write would take them from each other.
    [[gnu::always_inline]] void Prefetch(int32_t slot) const {
      if (slot >= 0) PrefetchRead(&clocks_[slot]);
    }

    // Whether the row is the first of its kind. Several positions, on several
    // threads, may have one slot: the thread that sees the old clock says so.
    bool Mark(int32_t slot) const {
      if (slot < 0) return false;
      uint32_t* const clock = &clocks_[slot];
      return IsBefore(__atomic_load_n(clock, __ATOMIC_RELAXED), now_) &&
             __atomic_exchange_n(clock, now_, __ATOMIC_RELAXED) != now_;
    }

   private:
    uint32_t* clocks_;
    uint32_t now_;
  };

  TouchEach(const TableView& table, uint32_t now) : marker_(table.clock, now) {}

  Marker ForTask(int64_t /*task*/) const { return marker_; }

 private:
  const Marker marker_;
};

// Notes the rows in sets of slots, one for each task, and sets the clocks
// afterwards: no thread waits for another's lines.
class TouchAfter {
 public:
  class Marker {
   public:
    explicit Marker(uint64_t* set) : set_(set) {}

    void Prefetch(int32_t /*slot*/) const {}

    // Without a branch: which positions have a row may be as good as random.
    bool Mark(int32_t slot) const {
      const uint32_t there = slot >= 0 ? 1 : 0;
      const uint32_t bit = there != 0 ? static_cast<uint32_t>(slot) : 0;
      set_[bit / kBits] |= uint64_t{there} << (bit % kBits);
      return false;  // they are counted later
    }

   private:
    uint64_t* set_;
  };

  TouchAfter(int64_t tasks, int64_t slots)
      : tasks_(tasks),
        words_((slots + kBits - 1) / kBits + 1),
        sets_(tasks * words_ * int64_t{sizeof(uint64_t)}) {}

  bool ok() const { return sets_.ok(); }

  Marker ForTask(int64_t task) const {
    uint64_t* const set = SetOf(task);
    std::fill_n(set, words_, 0);
    return Marker(set);
  }

  // Returns how many clocks it set.
  int64_t Touch(Parallel* parallel, uint32_t* clocks, uint32_t now) const {
    std::atomic<int64_t> touched{0};
    const int64_t parts = NumTasks(*parallel, words_, kGrain);
    parallel->Run(parts, [&](int64_t part) {
      const Range range = TaskRange(words_, part, parts);
      int64_t touched_here = 0;
      for (int64_t w = range.begin; w < range.end; ++w) {
        uint64_t found = 0;
        for (int64_t task = 0; task < tasks_; ++task) found |= SetOf(task)[w];
        for (; found != 0; found &= found - 1) {
          uint32_t* const clock = clocks + w * kBits + __builtin_ctzll(found);
          const bool before = IsBefore(*clock, now);
          *clock = before ? now : *clock;
          touched_here += before ? 1 : 0;
        }
      }
      touched += touched_here;
    });
    return touched;
  }

 private:
  static constexpr int64_t kBits = 64;

  uint64_t* SetOf(int64_t task) const {
    return sets_.As<uint64_t>() + task * words_;
  }

  const int64_t tasks_;
  const int64_t words_;
  const Scratch sets_;
};

// What is searched for, and where.
struct Search {
  Parallel* parallel;
  const TableView& table;
  const KeyRules& rules;
  const IdsView& ids;

  int64_t num_tasks() const { return NumTasks(*parallel, ids.size, kGrain); }
};

// Writes what `batch` has, and hands each row to a marker of `touch`. Returns
// the number of positions whose keys are missing.
template <class Touch>
int64_t FindAll(const Search& search, const Touch& touch, TierBatch* batch) {
  const IdsView& ids = search.ids;
  std::atomic<int64_t> resident{0};
  std::atomic<int64_t> missing{0};
  std::atomic<uint32_t> digest{0};
  const int64_t tasks = search.num_tasks();
  search.parallel->Run(tasks, [&](int64_t task) {
    const Range range = TaskRange(ids.size, task, tasks);
    const int64_t first = range.begin * ids.words_per_id;
    if (batch->words != nullptr) {
      std::copy_n(ids.words + first, range.end * ids.words_per_id - first,
                  batch->words + first);
    }
    digest += ScanIds(ids, range);
    int64_t resident_here = 0;
    int64_t missing_here = 0;
    const auto marker = touch.ForTask(task);
    const auto ahead = [marker](int32_t slot) __attribute__((always_inline)) {
      marker.Prefetch(slot);
    };
    const auto emit = [&, marker, slots = batch->slots](const ProbeItem& item) {
      slots[item.position] = item.slot;
      missing_here += item.slot == kSlotMissing ? 1 : 0;
      resident_here += marker.Mark(item.slot) ? 1 : 0;
    };
    Probe(search.table.index, search.rules, ids, range, ahead, emit);
    resident += resident_here;
    missing += missing_here;
  });
  batch->resident = resident;
  batch->digest = digest;
  return missing;
}

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

}  // namespace

bool FindMissingAndTouch(Parallel* parallel, const TableView& table,
                         const KeyRules& rules, const IdsView& ids,
                         uint32_t now, std::vector<Key>* missing,
                         TierBatch* batch) {
  const Search search{parallel, table, rules, ids};
  const auto used = static_cast<int64_t>(table.counters[kSlotsUsed]);
  int64_t most = 0;
  if (used > kSlotsPerId * ids.size) {
    most = FindAll(search, TouchEach(table, now), batch);
  } else {
    const TouchAfter touch(search.num_tasks(), used);
    if (!touch.ok()) return false;
    most = FindAll(search, touch, batch);
    batch->resident = touch.Touch(parallel, table.clock, now);
  }
  return DistinctMissing(rules, ids, batch->slots, most, missing);
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

}  // namespace oneemb
