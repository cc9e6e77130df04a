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

  // Starts to bring a key's home bucket into the cache, and then, if the key
  // is not at home, its other one.
  void PrefetchHome(ShardKey key) const;
  void PrefetchOther(ShardKey key) const;

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
  Address Home(uint64_t rest) const;
  // How far the other bucket of a key lies behind its home.
  uint64_t Distance(uint64_t quotient, uint16_t table) const;
  uint64_t Behind(uint64_t bucket, uint64_t distance) const;
  uint64_t Before(uint64_t bucket, uint64_t distance) const;
  int Match(const IndexBucket& bucket, uint64_t tag, uint16_t table) const;
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

}  // namespace oneemb
