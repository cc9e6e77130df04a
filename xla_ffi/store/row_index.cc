#include "store/row_index.h"

#include <algorithm>
#include <cmath>
#include <new>
#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "core/hash.h"
#include "store/hash_inverse.h"
#include "store/row_index_state.h"

namespace oneemb {
namespace {

using namespace row_index_internal;  // NOLINT(google-build-using-namespace)

Key KeyOf(int shard, ShardKey key) {
  const uint64_t hash = (static_cast<uint64_t>(shard) << kRestBits) | key.rest;
  return {Xxh64Inverse(hash, kIndexSeed + key.table), key.table};
}

// Bits of the locations below `max_location`.
int BitsFor(uint64_t max_location) {
  return max_location < 2 ? 1 : 64 - __builtin_clzll(max_location - 1);
}

// The sizes that a shard goes through: each an eighth above the last, the
// first one different from shard to shard by up to an eighth.
int64_t NextSize(int shard, int64_t at_least) {
  constexpr double kGrowth = 1.125;
  double size = 2.0 * (1.0 + (kGrowth - 1.0) * shard / kNumShards);
  while (static_cast<int64_t>(size) < at_least) size *= kGrowth;
  return static_cast<int64_t>(size);
}

int64_t BytesOf(int64_t buckets) {
  if (buckets == 0) return 0;
  return Pages::Rounded(buckets * static_cast<int64_t>(sizeof(IndexBucket)));
}

Status NoMemory() {
  return {StatusKind::kNoMemory, "no memory to enlarge the row index"};
}

// Where a Scan stands: before an entry of a bucket of a shard.
struct ScanPosition {
  int shard;
  int64_t bucket;
  int entry;
};

constexpr int kEntryShift = 3;
constexpr int kShardShift = 48;
static_assert(kIndexEntries < (1 << kEntryShift), "the bucket lies above");

uint64_t PackPosition(ScanPosition at) {
  return (static_cast<uint64_t>(at.shard) << kShardShift) |
         (static_cast<uint64_t>(at.bucket) << kEntryShift) |
         static_cast<uint64_t>(at.entry);
}

ScanPosition UnpackPosition(uint64_t cursor) {
  const uint64_t below = cursor & ((uint64_t{1} << kShardShift) - 1);
  return {static_cast<int>(cursor >> kShardShift),
          static_cast<int64_t>(below >> kEntryShift),
          static_cast<int>(below & ((1 << kEntryShift) - 1))};
}

}  // namespace

// Keys per shard.
void RowIndex::State::CountKeys(const Key* keys, int64_t n,
                                int64_t* counts) const {
  std::fill(counts, counts + kNumShards, 0);
  for (int64_t i = 0; i < n; ++i) ++counts[HashToShard(keys[i]).shard];
}

// Keys per shard; for shards that would have to grow for all of them, only
// those which are not there yet.
void RowIndex::State::CountNewKeys(const Key* keys, int64_t n,
                                   int64_t* counts) const {
  CountKeys(keys, n, counts);
  bool crowded[kNumShards];
  bool any = false;
  for (int s = 0; s < kNumShards; ++s) {
    crowded[s] = counts[s] > 0 && Crowded(s, counts[s]);
    any |= crowded[s] && shard(s).size() > 0;
  }
  if (!any) return;
  ForEachKey(*this, keys, n,
             [&](int64_t, HashedKey key, const IndexShard::Search&) {
               if (crowded[key.shard] && Find(key) != kNoLocation)
                 --counts[key.shard];
             });
}

// The buckets that a shard needs for `more` keys: what it has, if that will do.
int64_t RowIndex::State::SizeFor(int s, int64_t more, int bits) const {
  const IndexShard& current = shard(s);
  const int64_t keys = current.size() + more;
  if (keys == 0) return current.num_buckets();
  if (!Crowded(s, more) && current.location_bits() >= bits) {
    return current.num_buckets();
  }
  const int64_t needed = IndexShard::BucketsFor(keys, bits, kRestBits);
  return NextSize(s, std::max(needed, current.num_buckets()));
}

// Moves a shard to `buckets` buckets, with those keys of the stash that find a
// place there. May throw std::bad_alloc; either way nothing is lost.
bool RowIndex::State::Resize(PageSource* pages, int s, int64_t buckets) {
  IndexShard fresh;
  std::vector<ShardEntry> left_over;
  if (!shard(s).CopyTo(pages, buckets, &fresh, &left_over)) return false;
  IndexStash* const overflow = &stash(s);
  overflow->Reserve(static_cast<int64_t>(left_over.size()));
  for (const ShardEntry& entry : left_over) {
    overflow->Insert({entry.key, s}, entry.location);
  }
  shard(s) = std::move(fresh);
  overflow->TakeOut(s, [this, s](const ShardEntry& entry) {
    return shard(s).Insert(entry.key, entry.location);
  });
  return true;
}

RowIndex::RowIndex(PageSource* pages) : pages_(pages) {}
RowIndex::~RowIndex() = default;
RowIndex::RowIndex(RowIndex&&) noexcept = default;
RowIndex& RowIndex::operator=(RowIndex&&) noexcept = default;

int RowIndex::PartOf(Key key) { return HashToShard(key).shard / kPartShards; }

void RowIndex::Find(const Key* keys, int64_t n, uint64_t* locations) const {
  if (state_ == nullptr) {
    std::fill(locations, locations + n, kNoLocation);
    return;
  }
  ForEachKey(*state_, keys, n,
             [&](int64_t i, HashedKey key, const IndexShard::Search& search) {
               locations[i] = state_->End(key, search);
             });
}

Status RowIndex::Grow(const int64_t* more, uint64_t max_location) {
  if (max_location > uint64_t{1} << kMostLocationBits) {
    return {StatusKind::kInvalidArgument,
            "a location of the row index is below 2^" +
                std::to_string(kMostLocationBits) + ", not below " +
                std::to_string(max_location)};
  }
  const int bits = std::max(state_->location_bits, BitsFor(max_location));
  for (int s = 0; s < kNumShards; ++s) {
    const int64_t size = state_->SizeFor(s, more[s], bits);
    if (size == state_->shard(s).num_buckets()) continue;
    if (!state_->Resize(pages_, s, size)) return NoMemory();
  }
  state_->location_bits = bits;
  return {};
}

Status RowIndex::Reserve(const Key* keys, int64_t n, uint64_t max_location) {
  try {
    if (state_ == nullptr) state_ = std::make_unique<State>();
    int64_t counts[kNumShards];
    state_->CountNewKeys(keys, n, counts);
    ONEEMB_RETURN_IF_ERROR(Grow(counts, max_location));
    for (int p = 0; p < kNumParts; ++p) {
      const int64_t* const part = counts + int64_t{p} * kPartShards;
      state_->parts[p].stash.Reserve(
          std::accumulate(part, part + kPartShards, int64_t{0}));
    }
  } catch (const std::bad_alloc&) {
    return NoMemory();
  }
  return {};
}

Status RowIndex::ReserveRows(int64_t n, uint64_t max_location) {
  try {
    if (state_ == nullptr) state_ = std::make_unique<State>();
    // Four standard deviations above the mean.
    const double mean = static_cast<double>(n) / kNumShards;
    int64_t more[kNumShards];
    std::fill(more, more + kNumShards,
              static_cast<int64_t>(mean + 4.0 * std::sqrt(mean)) + 1);
    return Grow(more, max_location);
  } catch (const std::bad_alloc&) {
    return NoMemory();
  }
}

int64_t RowIndex::BytesAfterReserve(const Key* keys, int64_t n,
                                    uint64_t max_location) const {
  const State empty;
  const State& state = state_ == nullptr ? empty : *state_;
  int64_t counts[kNumShards];
  state.CountNewKeys(keys, n, counts);
  const int bits = std::max(state.location_bits, BitsFor(max_location));
  int64_t total = bytes() + (state_ == nullptr ? int64_t{sizeof(State)} : 0);
  int64_t largest = 0;  // of those that are twice there for a moment
  for (int s = 0; s < kNumShards; ++s) {
    const IndexShard& shard = state.shard(s);
    const int64_t size = state.SizeFor(s, counts[s], bits);
    if (size == shard.num_buckets()) continue;
    total += BytesOf(size) - shard.bytes();
    largest = std::max(largest, shard.bytes());
  }
  for (int p = 0; p < kNumParts; ++p) {
    const int64_t* const part = counts + int64_t{p} * kPartShards;
    total += state.parts[p].stash.BytesOfReserve(
        std::accumulate(part, part + kPartShards, int64_t{0}));
  }
  return total + largest;
}

void RowIndex::Put(const Key* keys, const uint64_t* locations, int64_t n,
                   uint64_t* old) {
  if (n == 0) return;  // perhaps nothing was ever reserved
  ForEachKey(*state_, keys, n,
             [&](int64_t i, HashedKey key, const IndexShard::Search&) {
               old[i] = state_->Replace(key, locations[i]);
               if (old[i] == kNoLocation) state_->Insert(key, locations[i]);
             });
}

void RowIndex::Erase(const Key* keys, int64_t n, uint64_t* old) {
  if (state_ == nullptr) {
    std::fill(old, old + n, kNoLocation);
    return;
  }
  ForEachKey(*state_, keys, n,
             [&](int64_t i, HashedKey key, const IndexShard::Search&) {
               old[i] = state_->Erase(key);
             });
}

void RowIndex::Move(const Key* keys, const uint64_t* from, const uint64_t* to,
                    int64_t n, uint8_t* moved) {
  if (state_ == nullptr) {
    std::fill(moved, moved + n, uint8_t{0});
    return;
  }
  ForEachKey(*state_, keys, n,
             [&](int64_t i, HashedKey key, const IndexShard::Search&) {
               moved[i] = state_->Find(key) == from[i] && from[i] != kNoLocation
                              ? 1
                              : 0;
               if (moved[i] != 0) state_->Replace(key, to[i]);
             });
}

void RowIndex::Clear() { state_.reset(); }

int64_t RowIndex::Scan(uint64_t* cursor, int64_t most, Key* keys,
                       uint64_t* locations) const {
  if (state_ == nullptr) return 0;
  ScanPosition at = UnpackPosition(*cursor);
  int64_t count = 0;
  while (count < most && at.shard < kNumShards) {
    const IndexShard& shard = state_->shard(at.shard);
    if (at.bucket == shard.num_buckets()) {
      at = {at.shard + 1, 0, 0};
      continue;
    }
    ShardEntry entries[kIndexEntries];
    const int used = shard.BucketEntries(at.bucket, entries);
    for (; at.entry < used && count < most; ++at.entry, ++count) {
      keys[count] = KeyOf(at.shard, entries[at.entry].key);
      locations[count] = entries[at.entry].location;
    }
    if (at.entry == used) at = {at.shard, at.bucket + 1, 0};
  }
  // The stashes, one a part, after the shards.
  while (count < most && at.shard < kNumShards + kNumParts) {
    const IndexStash& stash = state_->parts[at.shard - kNumShards].stash;
    for (; at.bucket < stash.size() && count < most; ++at.bucket, ++count) {
      const IndexStash::Entry& entry = stash.at(at.bucket);
      keys[count] = KeyOf(entry.key.shard, entry.key.key);
      locations[count] = entry.location;
    }
    if (at.bucket == stash.size()) at = {at.shard + 1, 0, 0};
  }
  *cursor = PackPosition(at);
  return count;
}

int64_t RowIndex::size() const {
  if (state_ == nullptr) return 0;
  int64_t total = 0;
  for (const Part& part : state_->parts) {
    total += part.stash.size();
    for (const IndexShard& shard : part.shards) total += shard.size();
  }
  return total;
}

int64_t RowIndex::bytes() const {
  if (state_ == nullptr) return 0;
  int64_t total = sizeof(State);
  for (const Part& part : state_->parts) {
    total += part.stash.bytes();
    for (const IndexShard& shard : part.shards) total += shard.bytes();
  }
  return total;
}

}  // namespace oneemb
