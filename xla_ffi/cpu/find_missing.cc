// Which rows of a batch the device tier lacks, and when the others were wanted.
#include <algorithm>
#include <atomic>
#include <cstring>

#include "core/counters.h"
#include "cpu/insert.h"
#include "cpu/memory.h"
#include "cpu/probe.h"
#include "cpu/tier.h"

namespace oneemb {
namespace {

constexpr int64_t kGrain = 2048;
// Ids that are searched for before anything else is done with their slots: all
// of it stays in the cache.
constexpr int64_t kPiece = 16 * kDigestIds;

// A set of slots for each of some tasks. No two share a line of the cache.
class SlotSets {
 public:
  SlotSets(int64_t sets, int64_t slots)
      : sets_(sets),
        words_((slots / kLineBits + 1) * kLineWords),
        memory_(sets * words_ * int64_t{sizeof(uint64_t)}) {}

  bool ok() const { return memory_.ok(); }
  int64_t words() const { return words_; }

  // The words of a set that is empty from now on.
  uint64_t* Clear(int64_t set) const {
    uint64_t* const words = Words(set);
    std::fill_n(words, words_, 0);
    return words;
  }

  // A word of the union of all sets.
  uint64_t Union(int64_t word) const {
    uint64_t all = 0;
    for (int64_t set = 0; set < sets_; ++set) all |= Words(set)[word];
    return all;
  }

  static constexpr int64_t kWordBits = 64;

 private:
  static constexpr int64_t kLineWords = kCacheLine / int64_t{sizeof(uint64_t)};
  static constexpr int64_t kLineBits = kLineWords * kWordBits;

  uint64_t* Words(int64_t set) const {
    return memory_.As<uint64_t>() + set * words_;
  }

  const int64_t sets_;
  const int64_t words_;
  const Scratch memory_;
};

// Sets the clocks of slots[range] which are before `now`; what is below 0 is no
// slot. Returns how many it set.
int64_t TouchEach(uint32_t* clocks, uint32_t now, const int32_t* slots,
                  Range range) {
  constexpr int64_t kAhead = 32;
  int64_t touched = 0;
  for (int64_t i = range.begin; i < range.end; ++i) {
    // To read: most are set already, and threads that asked for the lines of
    // hot rows to write would take them from each other.
    const int32_t next = slots[std::min(i + kAhead, range.end - 1)];
    if (next >= 0) PrefetchRead(&clocks[next]);
    if (slots[i] < 0) continue;
    // Several positions, on several threads, may have one slot: the thread that
    // sees the old clock counts it.
    uint32_t* const clock = &clocks[slots[i]];
    if (!IsBefore(__atomic_load_n(clock, __ATOMIC_RELAXED), now)) continue;
    touched += __atomic_exchange_n(clock, now, __ATOMIC_RELAXED) != now ? 1 : 0;
  }
  return touched;
}

// Adds slots[range] to a set. Without a branch: which positions have a row may
// be as good as random.
void AddToSet(const int32_t* slots, Range range, uint64_t* words) {
  for (int64_t i = range.begin; i < range.end; ++i) {
    const uint32_t there = slots[i] >= 0 ? 1 : 0;
    const uint32_t slot = there != 0 ? static_cast<uint32_t>(slots[i]) : 0;
    words[slot / SlotSets::kWordBits] |= uint64_t{there}
                                         << (slot % SlotSets::kWordBits);
  }
}

// Sets the clocks of all slots of some sets which are before `now`. Returns how
// many it set.
int64_t TouchSets(Parallel* parallel, uint32_t* clocks, uint32_t now,
                  const SlotSets& sets) {
  constexpr int64_t kWords = 128;
  std::atomic<int64_t> touched{0};
  const int64_t tasks = NumTasks(*parallel, sets.words(), kWords);
  parallel->Run(tasks, [&](int64_t task) {
    const Range range = TaskRange(sets.words(), task, tasks);
    int64_t touched_here = 0;
    for (int64_t word = range.begin; word < range.end; ++word) {
      uint32_t* const first = clocks + word * SlotSets::kWordBits;
      for (uint64_t set = sets.Union(word); set != 0; set &= set - 1) {
        uint32_t* const clock = first + __builtin_ctzll(set);
        const bool before = IsBefore(*clock, now);
        *clock = before ? now : *clock;
        touched_here += before ? 1 : 0;
      }
    }
    touched += touched_here;
  });
  return touched;
}

// What is searched for, and where.
struct Search {
  Parallel* parallel;
  const TableView& table;
  const KeyRules& rules;
  const IdsView& ids;

  int64_t num_tasks() const { return NumTasks(*parallel, ids.size, kGrain); }
};

// Writes what `batch` has but the number of rows touched. begin_touch(task)
// returns what is called with each range of the task whose slots are known.
// Returns the number of positions whose keys are missing.
template <class BeginTouch>
int64_t FindAll(const Search& search, TierBatch* batch,
                const BeginTouch& begin_touch) {
  const IdsView& ids = search.ids;
  int32_t* const slots = batch->slots;
  std::atomic<int64_t> missing{0};
  std::atomic<uint64_t> digest{DigestTables(ids)};
  const int64_t tasks = search.num_tasks();
  search.parallel->Run(tasks, [&](int64_t task) {
    const auto touch = begin_touch(task);
    const Range range = TaskBlocks(ids.size, kDigestIds, task, tasks);
    for (int64_t i = range.begin; i < range.end; i += kPiece) {
      const Range piece{i, std::min(i + kPiece, range.end)};
      if (batch->digests != nullptr) {
        digest += DigestBlocks(ids, piece, batch->digests);
      }
      ProbeSlots(search.table.index, search.rules, ids, piece, slots);
      missing +=
          std::count(slots + piece.begin, slots + piece.end, kSlotMissing);
      touch(piece);
    }
  });
  batch->digest = digest;
  return missing;
}

// Sets the clocks of what it finds, too, in one of two ways. Where sets of
// slots are not much larger than the batch they take less time: no thread waits
// for a clock that another one has.
int64_t FindAndTouch(const Search& search, uint32_t now, TierBatch* batch) {
  constexpr int64_t kBitsPerId = 64;
  uint32_t* const clocks = search.table.clock;
  const int32_t* const slots = batch->slots;
  const auto used = static_cast<int64_t>(search.table.counters[kSlotsUsed]);
  const int64_t tasks = search.num_tasks();
  const bool small = used <= kBitsPerId * search.ids.size / tasks;
  const SlotSets sets(tasks, small ? used : 0);
  if (small && sets.ok()) {
    const int64_t missing = FindAll(search, batch, [&](int64_t task) {
      return [slots, words = sets.Clear(task)](Range range) {
        AddToSet(slots, range, words);
      };
    });
    batch->touched = TouchSets(search.parallel, clocks, now, sets);
    return missing;
  }
  std::atomic<int64_t> touched{0};
  const int64_t missing = FindAll(search, batch, [&](int64_t /*task*/) {
    return
        [&](Range range) { touched += TouchEach(clocks, now, slots, range); };
  });
  batch->touched = touched;
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
  const int64_t most = FindAndTouch(search, now, batch);
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
