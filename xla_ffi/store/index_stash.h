// The keys that found no place in their shard of the row index.
//
// With hashes as good as random that is one in a million, and only among the
// first few keys of a shard. Keys that somebody made to collide can be many, so
// they are kept sorted.
#pragma once

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <utility>
#include <vector>

#include "store/index_shard.h"

namespace oneemb {

// What the hash of a key says: the shard, and the key in it.
struct HashedKey {
  ShardKey key;
  int shard;
};

// Not thread-safe; const calls may run at the same time as each other.
class IndexStash {
 public:
  struct Entry {
    HashedKey key;
    uint64_t location;
  };

  int64_t size() const { return static_cast<int64_t>(entries_.size()); }
  int64_t bytes() const { return BytesFor(entries_.capacity()); }
  const Entry& at(int64_t i) const { return entries_[static_cast<size_t>(i)]; }

  // Room for n more. May throw std::bad_alloc; nothing has changed then.
  void Reserve(int64_t n) {
    entries_.reserve(entries_.size() + static_cast<size_t>(n));
  }
  // How many bytes Reserve(n) would add.
  int64_t BytesOfReserve(int64_t n) const {
    const size_t needed = entries_.size() + static_cast<size_t>(n);
    return std::max<int64_t>(0, BytesFor(needed) - bytes());
  }

  // The location of a key, or null.
  const uint64_t* Find(HashedKey key) const {
    if (entries_.empty()) return nullptr;
    const auto it =
        std::lower_bound(entries_.begin(), entries_.end(), key, &Before);
    const bool found = it != entries_.end() && !After(*it, key);
    return found ? &it->location : nullptr;
  }
  uint64_t* Find(HashedKey key) {
    return const_cast<uint64_t*>(std::as_const(*this).Find(key));
  }

  // REQUIRES: room, and that the key is not there.
  void Insert(HashedKey key, uint64_t location) {
    entries_.insert(
        std::lower_bound(entries_.begin(), entries_.end(), key, &Before),
        {key, location});
  }

  // REQUIRES: that the key is there.
  void Erase(HashedKey key) {
    entries_.erase(
        std::lower_bound(entries_.begin(), entries_.end(), key, &Before));
  }

  // Removes the keys of a shard for which take(entry) is true.
  template <class Take>
  void TakeOut(int shard, const Take& take) {
    const auto taken = [&](const Entry& entry) {
      return entry.key.shard == shard &&
             take(ShardEntry{entry.key.key, entry.location});
    };
    entries_.erase(std::remove_if(entries_.begin(), entries_.end(), taken),
                   entries_.end());
  }

 private:
  static int64_t BytesFor(size_t entries) {
    return static_cast<int64_t>(entries * sizeof(Entry));
  }
  static bool Before(const Entry& entry, const HashedKey& key) {
    return std::tie(entry.key.shard, entry.key.key.rest, entry.key.key.table) <
           std::tie(key.shard, key.key.rest, key.key.table);
  }
  static bool After(const Entry& entry, const HashedKey& key) {
    return std::tie(key.shard, key.key.rest, key.key.table) <
           std::tie(entry.key.shard, entry.key.key.rest, entry.key.key.table);
  }

  std::vector<Entry> entries_;  // sorted by shard, hash and table
};

}  // namespace oneemb
