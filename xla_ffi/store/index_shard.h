// A hash table from (table, id) to a location, exact, in 12 bytes an entry.
//
// The hash of an id is one to one, so the hash stands for the id. A bucket's
// number says hash mod buckets, so an entry keeps only the quotient; what that
// saves, the location gets. An entry is 96 bits:
//
//   high  | table : 16 | tag, its high bits : 16 |
//   low   | tag, its low bits : 64 - L | location : L |
//
// where tag = quotient * 2 + (1 when the entry lies in its other bucket). Each
// key has two buckets, its home and another one that (home, quotient, table)
// decide and that leads back to the home. Twice the buckets make the quotient a
// bit shorter and L, the bits of a location, one longer.
//
// A bucket is one line of 64 bytes: 5 entries, how many are in use, and how
// many keys of this home lie in their other bucket. Where there are none, which
// is the case for half of the buckets of a full table, a search ends at home.
#pragma once

#include <cstdint>
#include <vector>

#include "core/hash.h"
#include "store/pages.h"

namespace oneemb {

constexpr int kIndexEntries = 5;

struct alignas(64) IndexBucket {
  uint32_t used : 3;
  uint32_t away : 29;
  uint32_t high[kIndexEntries];
  uint64_t low[kIndexEntries];
};
static_assert(sizeof(IndexBucket) == 64, "a bucket is one cache line");

// A key inside a shard: what its hash has left besides the shard's number.
struct ShardKey {
  uint64_t rest;
  uint16_t table;
};

struct ShardEntry {
  ShardKey key;
  uint64_t location;
};

// Where an entry keeps its location. Good until the next change of the shard.
class Place {
 public:
  Place() = default;
  Place(uint64_t* word, uint64_t mask) : word_(word), mask_(mask) {}

  bool found() const { return word_ != nullptr; }
  // Atomic, as is SetLocation: a location may change while others read it.
  uint64_t Location() const {
    return __atomic_load_n(word_, __ATOMIC_RELAXED) & mask_;
  }
  void SetLocation(uint64_t location) const {
    const uint64_t word = __atomic_load_n(word_, __ATOMIC_RELAXED);
    __atomic_store_n(word_, (word & ~mask_) | (location & mask_),
                     __ATOMIC_RELAXED);
  }
  // Sets the location if it is still `expected`; else *expected is what it is.
  // May fail for no reason.
  bool Exchange(uint64_t* expected, uint64_t location) const {
    uint64_t word = __atomic_load_n(word_, __ATOMIC_RELAXED);
    const uint64_t key_bits = word & ~mask_;
    uint64_t wanted = key_bits | *expected;
    const bool done = __atomic_compare_exchange_n(
        word_, &wanted, key_bits | location, /*weak=*/true, __ATOMIC_RELAXED,
        __ATOMIC_RELAXED);
    if (!done) *expected = wanted & mask_;
    return done;
  }

 private:
  uint64_t* word_ = nullptr;
  uint64_t mask_ = 0;
};

// Not thread-safe; const calls may run at the same time as each other.
class IndexShard {
 public:
  // `rest` of a key is below 2^rest_bits.
  explicit IndexShard(int rest_bits = 64) : rest_bits_(rest_bits) {}

  // Keys that `buckets` buckets may hold: at 94 % a place is found after one
  // move or two; at 97 % the searches become long.
  static int64_t MostKeys(int64_t buckets) {
    return buckets * kIndexEntries * 94 / 100;
  }
  // Buckets that hold `keys` keys with locations of `location_bits` bits.
  static int64_t BucketsFor(int64_t keys, int location_bits, int rest_bits);

  int64_t size() const { return size_; }
  int64_t num_buckets() const { return static_cast<int64_t>(num_buckets_); }
  int64_t bytes() const { return pages_.bytes(); }
  // Locations are below 2^location_bits().
  int location_bits() const { return location_bits_; }

  Place Find(ShardKey key) const;
  // Adds a key that is not there. False when no place was found: nothing
  // changed. The table ought to have room (MostKeys), or searches take long.
  bool Insert(ShardKey key, uint64_t location);
  // Removes a key and says where it was; false when there was none.
  bool Erase(ShardKey key, uint64_t* location);

  // Removes every key and keeps the buckets.
  void EraseAll();

  // Copies everything into *fresh, made anew with `buckets` >= 2 buckets. What
  // finds no place there is added to `left_over`, which may throw
  // std::bad_alloc. False when there is no memory for the buckets.
  bool CopyTo(PageSource* source, int64_t buckets, IndexShard* fresh,
              std::vector<ShardEntry>* left_over) const;

  // The entries of one bucket, at most kIndexEntries; returns how many.
  int BucketEntries(int64_t bucket, ShardEntry* entries) const;

  // The same as places; places[e] is that of entries[e].
  int BucketPlaces(int64_t bucket, Place* places) const;

  // A search in three steps, for many keys at a time: each step asks the cache
  // for what the next one reads. A shard that changes between two steps leaves
  // a search that is good as a prefetch only.
  class Search;
  inline Search Begin(ShardKey key) const;
  inline void Continue(Search* search) const;
  inline Place End(const Search& search) const;

 private:
  struct Address {
    uint64_t bucket;
    uint64_t quotient;
  };
  struct Position {
    uint64_t bucket;
    int entry;  // -1: none
  };
  struct Node;

  IndexBucket* buckets() const {
    return reinterpret_cast<IndexBucket*>(pages_.data());
  }
  uint64_t LocationMask() const { return (uint64_t{1} << location_bits_) - 1; }
  void SetShape(uint64_t buckets);
  inline Address Home(uint64_t rest) const;
  uint32_t HighWord(uint64_t tag, uint16_t table) const {
    return (uint32_t{table} << 16) |
           static_cast<uint32_t>(tag >> (64 - location_bits_));
  }
  // The bucket besides `home` in which a key may lie, and the way back.
  inline uint64_t Distance(uint64_t quotient, uint16_t table) const;
  uint64_t Behind(uint64_t bucket, uint64_t distance) const {
    const uint64_t sum = bucket + distance;
    return sum >= num_buckets_ ? sum - num_buckets_ : sum;
  }
  uint64_t Before(uint64_t bucket, uint64_t distance) const {
    return bucket >= distance ? bucket - distance
                              : bucket + num_buckets_ - distance;
  }
  inline int Match(const IndexBucket& bucket, uint64_t tag,
                   uint16_t table) const;
  Position Locate(ShardKey key) const;
  uint64_t TagOf(const IndexBucket& bucket, int entry) const;
  uint64_t OtherBucket(uint64_t bucket, int entry) const;
  void Write(IndexBucket* bucket, int entry, uint64_t tag, uint16_t table,
             uint64_t location) const;
  bool Append(uint64_t bucket, uint64_t tag, uint16_t table, uint64_t location);
  void MoveEntry(uint64_t from, int entry, uint64_t to, int to_entry);
  Position MoveAlong(const Node* nodes, int last, int entry, uint64_t to);
  Position MakeRoom(uint64_t home, uint64_t other);

  Pages pages_;
  int64_t size_ = 0;
  uint64_t num_buckets_ = 0;
  uint64_t reciprocal_ = 0;  // floor(2^64 / num_buckets_)
  int rest_bits_;
  int location_bits_ = 0;
};

class IndexShard::Search {
 private:
  friend class IndexShard;
  IndexBucket* bucket_;  // null: the key is not there
  uint64_t tag_;
  uint64_t home_;
  int entry_;  // -1: not found so far
  uint16_t table_;
};

namespace index_shard_internal {

constexpr uint64_t kDistanceSeed = 0x20000;  // away from those of HashKey

inline uint64_t MultiplyHigh(uint64_t a, uint64_t b) {
  __extension__ using Wide = unsigned __int128;
  return static_cast<uint64_t>((static_cast<Wide>(a) * b) >> 64);
}

}  // namespace index_shard_internal

inline IndexShard::Address IndexShard::Home(uint64_t rest) const {
  uint64_t quotient =
      index_shard_internal::MultiplyHigh(rest, reciprocal_);  // or one too few
  uint64_t bucket = rest - quotient * num_buckets_;
  const bool one_more = bucket >= num_buckets_;
  bucket -= one_more ? num_buckets_ : 0;
  quotient += one_more ? 1 : 0;
  return {bucket, quotient};
}

inline uint64_t IndexShard::Distance(uint64_t quotient, uint16_t table) const {
  using namespace index_shard_internal;  // NOLINT(google-build-using-namespace)
  return 1 +
         MultiplyHigh(Xxh64(quotient, kDistanceSeed + table), num_buckets_ - 1);
}

// The high words of all five are compared, without a branch on which one it is:
// nobody can guess that. They tell the right one from the others but for one
// time in ten thousand.
inline int IndexShard::Match(const IndexBucket& bucket, uint64_t tag,
                             uint16_t table) const {
  const uint64_t low = tag << location_bits_;
  const uint32_t high = HighWord(tag, table);
  uint32_t matches = 0;
  for (int e = 0; e < kIndexEntries; ++e) {
    matches |= static_cast<uint32_t>(bucket.high[e] == high) << e;
  }
  matches &= (1U << bucket.used) - 1;
  for (; matches != 0; matches &= matches - 1) {
    const int e = __builtin_ctz(matches);
    const uint64_t word = __atomic_load_n(&bucket.low[e], __ATOMIC_RELAXED);
    if ((word ^ low) >> location_bits_ == 0) return e;
  }
  return -1;
}

// Inlined by force: where only the prefetch counts, g++ would drop the call.
[[gnu::always_inline]] inline IndexShard::Search IndexShard::Begin(
    ShardKey key) const {
  Search search;
  search.bucket_ = nullptr;
  search.entry_ = -1;
  if (num_buckets_ == 0) return search;
  const Address home = Home(key.rest);
  search.bucket_ = &buckets()[home.bucket];
  search.home_ = home.bucket;
  search.tag_ = home.quotient * 2;
  search.table_ = key.table;
  __builtin_prefetch(search.bucket_);
  return search;
}

inline void IndexShard::Continue(Search* search) const {
  if (search->bucket_ == nullptr) return;
  search->entry_ = Match(*search->bucket_, search->tag_, search->table_);
  if (search->entry_ >= 0) return;
  if (search->bucket_->away == 0) {
    search->bucket_ = nullptr;
    return;
  }
  search->bucket_ = &buckets()[Behind(
      search->home_, Distance(search->tag_ / 2, search->table_))];
  ++search->tag_;
  __builtin_prefetch(search->bucket_);
}

inline Place IndexShard::End(const Search& search) const {
  if (search.bucket_ == nullptr) return {};
  const int entry = search.entry_ >= 0
                        ? search.entry_
                        : Match(*search.bucket_, search.tag_, search.table_);
  if (entry < 0) return {};
  return {&search.bucket_->low[entry], LocationMask()};
}

}  // namespace oneemb
