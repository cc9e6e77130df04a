#include "store/host_cache.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <string>

#include "store/pipeline.h"

namespace oneemb {
namespace {

// The parts of a location.
constexpr uint64_t kOneUse = 1;
constexpr uint64_t kUses = 3;
constexpr uint64_t kDirty = 4;
constexpr uint64_t kWriting = 8;
constexpr int kBatchShift = 4;
constexpr uint64_t kBatches = 128;
constexpr uint64_t kBatchMask = (kBatches - 1) << kBatchShift;
constexpr int kStateBits = 11;
static_assert(kBatchMask < (1 << kStateBits), "the slot lies above");
static_assert(HostCache::kMostBatches <= kBatches / 2,
              "a batch in flight is told from one that ended");

constexpr int kRestBits = 64;  // the index is one shard

uint32_t SlotOf(uint64_t location) {
  return static_cast<uint32_t>(location >> kStateBits);
}

uint64_t WithBatch(uint64_t location, uint64_t batch) {
  return (location & ~kBatchMask) | (batch % kBatches) << kBatchShift;
}

// A few more than needed: chance weighs more in a small table.
int64_t IndexBuckets(int64_t rows) {
  constexpr int64_t kSpare = 16;
  const int slot_bits = 64 - __builtin_clzll(static_cast<uint64_t>(rows));
  return IndexShard::BucketsFor(rows + kSpare, slot_bits + kStateBits,
                                kRestBits);
}

// All memory of a cache of `rows` rows.
int64_t BytesFor(const RowArena& arena, int64_t rows) {
  constexpr auto kBucketBytes = static_cast<int64_t>(sizeof(IndexBucket));
  return arena.BytesFor(rows) + S3Fifo::BytesFor(rows) +
         Pages::Rounded(IndexBuckets(rows) * kBucketBytes);
}

// The most rows whose cache fits a budget.
int64_t RowsFor(const RowArena& arena, int64_t budget) {
  int64_t fit = 0;
  int64_t too_many =
      std::min(budget / arena.row_bytes(), S3Fifo::kMostSlots) + 1;
  while (too_many - fit > 1) {
    const int64_t middle = fit + (too_many - fit) / 2;
    (BytesFor(arena, middle) <= budget ? fit : too_many) = middle;
  }
  return fit;
}

}  // namespace

HostCache::HostCache(const HostTierOptions& options, PageSource* pages)
    : options_(options), pages_(pages), arena_(pages, options.row_bytes) {}

Status HostCache::Open(const HostTierOptions& options,
                       std::unique_ptr<HostCache>* cache, PageSource* pages) {
  ONEEMB_RETURN_IF_ERROR(CheckHostTierOptions(options));
  std::unique_ptr<HostCache> fresh(new (std::nothrow)
                                       HostCache(options, pages));
  if (fresh == nullptr) {
    return {StatusKind::kNoMemory, "no memory for the host cache"};
  }
  fresh->capacity_ = RowsFor(fresh->arena_, options.budget_bytes);
  if (fresh->capacity_ == 0) {
    return {StatusKind::kInvalidArgument,
            "a host cache of " + std::to_string(options.budget_bytes) +
                " bytes has no room for a row of " +
                std::to_string(options.row_bytes) +
                " bytes with its index; the smallest takes " +
                std::to_string(BytesFor(fresh->arena_, 1))};
  }
  fresh->bytes_ = BytesFor(fresh->arena_, fresh->capacity_);
  ONEEMB_RETURN_IF_ERROR(fresh->Allocate());
  *cache = std::move(fresh);
  return {};
}

// All the memory that it will ever have.
Status HostCache::Allocate() {
  const IndexShard empty(kRestBits);
  std::vector<ShardEntry> none;
  if (empty.CopyTo(pages_, IndexBuckets(capacity_), &index_, &none) &&
      fifo_.Open(pages_, capacity_) && arena_.Extend(capacity_)) {
    return {};
  }
  return {StatusKind::kNoMemory,
          "no memory for a host cache of " + std::to_string(bytes_) + " bytes"};
}

void HostCache::Clear() {
  index_.EraseAll();
  fifo_.Clear();
  victims_.clear();
  slots_ = 0;
  num_free_ = 0;
  dirty_ = 0;
}

uint64_t HostCache::BeginBatch() {
  if (newest_ + 1 - oldest_ == kMostBatches) return 0;
  ++newest_;
  ended_ &= ~(uint64_t{1} << (newest_ % kMostBatches));
  return newest_;
}

void HostCache::EndBatch(uint64_t batch) {
  if (batch < oldest_ || batch > newest_) return;
  ended_ |= uint64_t{1} << (batch % kMostBatches);
  while (oldest_ <= newest_ && (ended_ >> (oldest_ % kMostBatches) & 1) != 0) {
    ++oldest_;
  }
}

// Whether the last batch that used a row may be in flight. A row that was not
// used for long can be taken for pinned; it waits a little longer, then.
bool HostCache::Pinned(uint64_t location) const {
  const uint64_t batch = (location & kBatchMask) >> kBatchShift;
  return (batch - oldest_) % kBatches < newest_ + 1 - oldest_;
}

// Counts a use and pins. Others may do the same to the same row: of two
// batches the newer one stays, which does not end before the older one counts
// as ended.
void HostCache::Touch(Place place, uint64_t batch) const {
  uint64_t location = place.Location();
  uint64_t wanted = 0;
  do {
    wanted = location;
    if ((wanted & kUses) != kUses) wanted += kOneUse;
    const uint64_t stored = (wanted & kBatchMask) >> kBatchShift;
    const bool newer = !Pinned(wanted) || (batch - oldest_) % kBatches >
                                              (stored - oldest_) % kBatches;
    if (batch != 0 && newer) wanted = WithBatch(wanted, batch);
  } while (wanted != location && !place.Exchange(&location, wanted));
}

// Calls found(i, place, row) for every key in order; row is null when there is
// no such key.
template <class Found>
void HostCache::FindEach(const Key* keys, int64_t n, const Found& found) const {
  struct Item {
    IndexShard::Search search;
    Place place;
    char* row;
  };
  Pipeline<Item>(
      n,
      [&](int64_t i, Item* item) {
        item->search = index_.Begin({HashKey(keys[i]), keys[i].table});
      },
      [&](int64_t, Item* item) { index_.Continue(&item->search); },
      [&](int64_t, Item* item) {
        item->place = index_.End(item->search);
        item->row = nullptr;
        if (!item->place.found()) return;
        item->row = arena_.Row(SlotOf(item->place.Location()));
        PrefetchRow(item->row, options_.row_bytes);
      },
      [&](int64_t i, Item* item) { found(i, item->place, item->row); });
}

void HostCache::Fetch(const Key* keys, int64_t n, char* rows, uint8_t* found,
                      uint64_t batch) {
  const int64_t width = options_.row_bytes;
  int64_t hits = 0;
  FindEach(keys, n, [&](int64_t i, Place place, const char* row) {
    found[i] = row == nullptr ? 0 : 1;
    if (row == nullptr) return;
    ++hits;
    Touch(place, batch);
    memcpy(rows + i * width, row, static_cast<size_t>(width));
  });
  hits_.fetch_add(hits, std::memory_order_relaxed);
  misses_.fetch_add(n - hits, std::memory_order_relaxed);
}

void HostCache::Peek(const Key* keys, int64_t n, char* rows,
                     uint8_t* found) const {
  const int64_t width = options_.row_bytes;
  FindEach(keys, n, [&](int64_t i, Place, const char* row) {
    found[i] = row == nullptr ? 0 : 1;
    if (row == nullptr) return;
    memcpy(rows + i * width, row, static_cast<size_t>(width));
  });
}

int64_t HostCache::CountMissing(const Key* keys, int64_t n,
                                uint8_t* missing) const {
  int64_t count = 0;
  Pipeline<IndexShard::Search>(
      n,
      [&](int64_t i, IndexShard::Search* search) {
        *search = index_.Begin({HashKey(keys[i]), keys[i].table});
      },
      [&](int64_t, IndexShard::Search* search) { index_.Continue(search); },
      [&](int64_t i, IndexShard::Search* search) {
        const bool here = index_.End(*search).found();
        count += here ? 0 : 1;
        if (missing != nullptr) missing[i] = here ? 0 : 1;
      });
  return count;
}

bool HostCache::TakeSlot(uint32_t* slot) {
  if (num_free_ > 0) {
    *slot = first_free_;
    memcpy(&first_free_, arena_.Row(*slot), sizeof(first_free_));
    --num_free_;
    return true;
  }
  if (slots_ == capacity_) return false;
  *slot = static_cast<uint32_t>(slots_++);
  return true;
}

void HostCache::FreeSlot(uint32_t slot) {
  memcpy(arena_.Row(slot), &first_free_, sizeof(first_free_));
  first_free_ = slot;
  ++num_free_;
}

// The row that leaves next; it is out of its queue. Bounded: a row comes out of
// the main queue at most four times before it has no uses left, and when all of
// that queue is pinned the small one is asked.
bool HostCache::NextVictim(uint32_t* slot, Place* place, bool* from_main) {
  const int64_t most = fifo_.small_size() + 6 * fifo_.main_size() + 1;
  int64_t pinned_in_a_row = 0;
  for (int64_t i = 0; i < most; ++i) {
    const bool main_is_pinned = pinned_in_a_row >= fifo_.main_size();
    if (!fifo_.Pop(main_is_pinned, slot, from_main)) return false;
    const Key key = fifo_.key(*slot);
    *place = index_.Find({HashKey(key), key.table});
    const uint64_t location = place->Location();
    const uint64_t uses = location & kUses;
    const bool pinned = Pinned(location);
    if (!pinned && uses == 0) return true;
    if (uses > 0) {
      // Leaving the small queue it begins anew; in the main queue each round
      // costs one use.
      place->SetLocation(location - (*from_main ? kOneUse : uses));
    }
    pinned_in_a_row = pinned ? pinned_in_a_row + 1 : 0;
    fifo_.PushMain(*slot);
  }
  return false;
}

void HostCache::Evict(uint32_t slot, bool from_main) {
  const Key key = fifo_.key(slot);
  const uint64_t hash = HashKey(key);
  uint64_t location = 0;
  index_.Erase({hash, key.table}, &location);
  if (!from_main) fifo_.Remember(hash);
  FreeSlot(slot);
  ++evictions_;
}

Status HostCache::MakeRoom(int64_t n, std::vector<Key>* keys,
                           std::vector<char>* rows) {
  const int64_t most = std::min(n, capacity_) - free_rows();
  if (most <= 0) return {};
  const auto width = static_cast<size_t>(options_.row_bytes);
  const auto writes = static_cast<size_t>(std::min(most, dirty_));
  try {
    keys->reserve(keys->size() + writes);
    rows->reserve(rows->size() + writes * width);
    victims_.reserve(victims_.size() + writes);
  } catch (const std::bad_alloc&) {
    return {StatusKind::kNoMemory,
            "no memory for " + std::to_string(writes) +
                " rows on their way from the host cache"};
  }
  for (int64_t i = 0; i < most; ++i) {
    uint32_t slot = 0;
    bool from_main = false;
    Place place;
    if (!NextVictim(&slot, &place, &from_main)) break;
    const uint64_t location = place.Location();
    if ((location & kDirty) == 0) {
      Evict(slot, from_main);
      continue;
    }
    place.SetLocation((location & ~kDirty) | kWriting);
    --dirty_;
    victims_.push_back({slot, from_main});
    keys->push_back(fifo_.key(slot));
    const char* const row = arena_.Row(slot);
    rows->insert(rows->end(), row, row + width);
  }
  return {};
}

// Where a victim is, if it is still here and on its way.
Place HostCache::VictimPlace(const Victim& victim) const {
  const Key key = fifo_.key(victim.slot);
  const Place place = index_.Find({HashKey(key), key.table});
  if (!place.found()) return {};  // removed
  const uint64_t location = place.Location();
  const bool same = SlotOf(location) == victim.slot;  // not another row's now
  return same && (location & kWriting) != 0 ? place : Place();
}

void HostCache::DropVictims() {
  for (const Victim& victim : victims_) {
    const Place place = VictimPlace(victim);
    if (!place.found()) continue;
    ++write_backs_;
    const uint64_t location = place.Location() & ~kWriting;
    if ((location & kDirty) == 0 && !Pinned(location)) {
      Evict(victim.slot, victim.from_main);
    } else {
      place.SetLocation(location);
      fifo_.PushMain(victim.slot);
    }
  }
  victims_.clear();
}

void HostCache::KeepVictims() {
  for (const Victim& victim : victims_) {
    const Place place = VictimPlace(victim);
    if (!place.found()) continue;
    const uint64_t location = place.Location();
    if ((location & kDirty) == 0) ++dirty_;
    place.SetLocation((location & ~kWriting) | kDirty);
    fifo_.PushMain(victim.slot);
  }
  victims_.clear();
}

bool HostCache::InsertOne(Key key, const char* row, bool dirty,
                          uint64_t batch) {
  const auto width = static_cast<size_t>(options_.row_bytes);
  const uint64_t hash = HashKey(key);
  const uint64_t dirty_bit = dirty ? kDirty : 0;
  const Place place = index_.Find({hash, key.table});
  if (place.found()) {
    const uint64_t location = place.Location();
    if (dirty) {
      memcpy(arena_.Row(SlotOf(location)), row, width);
      if ((location & kDirty) == 0) ++dirty_;
    }
    place.SetLocation(location | dirty_bit);
    return true;
  }
  uint32_t slot = 0;
  if (!TakeSlot(&slot)) return false;
  const uint64_t location = WithBatch(uint64_t{slot} << kStateBits | dirty_bit,
                                      batch != 0 ? batch : oldest_ - 1);
  if (!index_.Insert({hash, key.table}, location)) {
    FreeSlot(slot);
    return false;
  }
  fifo_.Admit(slot, key, hash);
  memcpy(arena_.Row(slot), row, width);
  if (dirty) ++dirty_;
  return true;
}

void HostCache::Insert(const Key* keys, const char* rows, int64_t n, bool dirty,
                       uint8_t* taken, uint64_t batch) {
  FindEach(keys, n, [&](int64_t i, Place, const char*) {
    taken[i] =
        InsertOne(keys[i], rows + i * options_.row_bytes, dirty, batch) ? 1 : 0;
  });
}

void HostCache::Erase(const Key* keys, int64_t n) {
  FindEach(keys, n, [&](int64_t i, Place, const char*) {
    uint64_t location = 0;
    if (!index_.Erase({HashKey(keys[i]), keys[i].table}, &location)) return;
    if ((location & kDirty) != 0) --dirty_;
    fifo_.Remove(SlotOf(location));
    FreeSlot(SlotOf(location));
  });
}

int64_t HostCache::ScanDirty(uint64_t* cursor, int64_t most, Key* keys,
                             char* rows) const {
  int64_t count = 0;
  auto bucket = static_cast<int64_t>(*cursor);
  for (; bucket < index_.num_buckets() && count + kIndexEntries <= most;
       ++bucket) {
    Place places[kIndexEntries];
    const int used = index_.BucketPlaces(bucket, places);
    for (int e = 0; e < used; ++e) {
      const uint64_t location = places[e].Location();
      if ((location & kDirty) == 0) continue;
      const uint32_t slot = SlotOf(location);
      keys[count] = fifo_.key(slot);
      memcpy(rows + count * options_.row_bytes, arena_.Row(slot),
             static_cast<size_t>(options_.row_bytes));
      ++count;
    }
  }
  *cursor = static_cast<uint64_t>(bucket);
  return count;
}

void HostCache::MarkClean() {
  for (int64_t bucket = 0; bucket < index_.num_buckets(); ++bucket) {
    Place places[kIndexEntries];
    const int used = index_.BucketPlaces(bucket, places);
    for (int e = 0; e < used; ++e) {
      places[e].SetLocation(places[e].Location() & ~kDirty);
    }
  }
  dirty_ = 0;
}

HostCacheStats HostCache::stats() const {
  return {hits_.load(std::memory_order_relaxed),
          misses_.load(std::memory_order_relaxed), evictions_, write_backs_};
}

}  // namespace oneemb
