// The inside of the row index, for code that is inlined into its callers.
#pragma once

#include <cstdint>
#include <utility>

#include "core/bucket.h"
#include "store/index_shard.h"
#include "store/index_stash.h"
#include "store/pipeline.h"
#include "store/row_index.h"

namespace oneemb {
namespace row_index_internal {

// A shard of an index of 10^9 keys holds a million of them, and is rebuilt in
// 50 ms. Fewer shards are faster by a few ns a key, being large enough for huge
// pages sooner, but make longer pauses.
constexpr int kShardBits = 10;
constexpr int kNumShards = 1 << kShardBits;
constexpr int kRestBits = 64 - kShardBits;
constexpr int kPartShards = kNumShards / RowIndex::kNumParts;

inline HashedKey HashToShard(Key key) {
  const uint64_t hash = HashKey(key);
  return {{hash & ((uint64_t{1} << kRestBits) - 1), key.table},
          static_cast<int>(hash >> kRestBits)};
}

struct KeyInFlight {
  HashedKey key;
  IndexShard::Search search;
};

// Calls visit(i, key, search) for every key in order, each one's buckets having
// been fetched in the meantime.
template <class State, class Visit>
inline void ForEachKey(const State& state, const Key* keys, int64_t n,
                       const Visit& visit) {
  Pipeline<KeyInFlight>(
      n,
      [&](int64_t i, KeyInFlight* item) {
        item->key = HashToShard(keys[i]);
        item->search = state.shard(item->key.shard).Begin(item->key.key);
      },
      [&](int64_t, KeyInFlight* item) {
        state.shard(item->key.shard).Continue(&item->search);
      },
      [&](int64_t i, KeyInFlight* item) { visit(i, item->key, item->search); });
}

}  // namespace row_index_internal

// Shards that belong together, and what overflowed from them.
struct alignas(64) RowIndex::Part {
  IndexShard shards[row_index_internal::kPartShards];
  IndexStash stash;
};

struct RowIndex::State {
  State() {
    for (Part& part : parts) {
      for (IndexShard& shard : part.shards)
        shard = IndexShard(row_index_internal::kRestBits);
    }
  }

  IndexShard& shard(int s) {
    return parts[s / row_index_internal::kPartShards]
        .shards[s % row_index_internal::kPartShards];
  }
  const IndexShard& shard(int s) const {
    return parts[s / row_index_internal::kPartShards]
        .shards[s % row_index_internal::kPartShards];
  }
  IndexStash& stash(int s) {
    return parts[s / row_index_internal::kPartShards].stash;
  }
  const IndexStash& stash(int s) const {
    return parts[s / row_index_internal::kPartShards].stash;
  }

  // Where a key is, or kNoLocation.
  uint64_t Find(HashedKey key) const {
    return LocationAt(key, shard(key.shard).Find(key.key));
  }
  // The same, at the end of a search.
  uint64_t End(HashedKey key, const IndexShard::Search& search) const {
    return LocationAt(key, shard(key.shard).End(search));
  }
  uint64_t LocationAt(HashedKey key, Place place) const {
    if (place.found()) return place.Location();
    const IndexStash& overflow = stash(key.shard);
    const uint64_t* const location = overflow.Find(key);
    return location == nullptr ? kNoLocation : *location;
  }

  // Sets the location of a key if it is there; returns what it was.
  uint64_t Replace(HashedKey key, uint64_t location) {
    if (const Place place = shard(key.shard).Find(key.key); place.found()) {
      const uint64_t old = place.Location();
      place.SetLocation(location);
      return old;
    }
    uint64_t* const stashed = stash(key.shard).Find(key);
    return stashed == nullptr ? kNoLocation : std::exchange(*stashed, location);
  }

  void Insert(HashedKey key, uint64_t location) {
    if (!shard(key.shard).Insert(key.key, location)) {
      stash(key.shard).Insert(key, location);
    }
  }

  uint64_t Erase(HashedKey key) {
    uint64_t location = kNoLocation;
    if (shard(key.shard).Erase(key.key, &location)) return location;
    if (const uint64_t* const stashed = stash(key.shard).Find(key)) {
      location = *stashed;
      stash(key.shard).Erase(key);
    }
    return location;
  }

  void CountKeys(const Key* keys, int64_t n, int64_t* counts) const;
  void CountNewKeys(const Key* keys, int64_t n, int64_t* counts) const;
  bool Crowded(int s, int64_t more) const {
    return shard(s).size() + more >
           IndexShard::MostKeys(shard(s).num_buckets());
  }
  int64_t SizeFor(int s, int64_t more, int bits) const;
  bool Resize(PageSource* pages, int s, int64_t buckets);

  Part parts[kNumParts];
  int location_bits = 1;
};

template <class RowOf, class Then>
void RowIndex::FindRows(const Key* keys, int64_t n, int64_t row_bytes,
                        const RowOf& row_of, const Then& then) const {
  using namespace row_index_internal;  // NOLINT(google-build-using-namespace)
  struct Item {
    KeyInFlight key;
    decltype(row_of(uint64_t{0})) row;
  };
  const State& state = *state_;
  Pipeline<Item>(
      n,
      [&](int64_t i, Item* item) {
        item->key.key = HashToShard(keys[i]);
        item->key.search =
            state.shard(item->key.key.shard).Begin(item->key.key.key);
      },
      [&](int64_t, Item* item) {
        state.shard(item->key.key.shard).Continue(&item->key.search);
      },
      [&](int64_t, Item* item) {
        const uint64_t location = state.End(item->key.key, item->key.search);
        item->row = nullptr;
        if (location == kNoLocation) return;
        item->row = row_of(location);
        PrefetchRow(item->row, row_bytes);
      },
      [&](int64_t i, Item* item) { then(i, item->row); });
}

}  // namespace oneemb
