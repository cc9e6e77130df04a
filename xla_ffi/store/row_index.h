// Where every row of the store lies: an exact map from (table, id) to a
// location, in memory, of 14.4 bytes a key.
//
// It is made of many small hash tables (index_shard.h), chosen by the top bits
// of the hash, each of which grows alone, by an eighth: no call waits for the
// whole index to be rebuilt, and at no time is there more than one shard twice.
// Their sizes are staggered, so that they do not grow all at once either.
#pragma once

#include <cstdint>
#include <memory>

#include "store/key.h"
#include "store/pages.h"
#include "store/status.h"

namespace oneemb {

// What a search reports for a key that is not there.
constexpr uint64_t kNoLocation = ~uint64_t{0};
// Locations are below 2^kMostLocationBits. An entry has 96 bits for key and
// location together, so small indexes are for small locations: 2^k buckets of
// 64 bytes (4.4 keys each) take locations below 2^(k + 15), and an index grows
// to take larger ones.
constexpr int kMostLocationBits = 47;

// Not thread-safe; const calls may run at the same time as each other. Put,
// Erase and Move may run at the same time as calls of these three whose keys
// are all of other parts (PartOf): so several threads can share a batch.
//
// Keys of a batch are worked on in order: of a key that occurs twice in a Put,
// the later location stays.
class RowIndex {
 public:
  static constexpr int kNumParts = 16;

  // Empty; takes memory with the first Reserve. `pages` must outlive it.
  explicit RowIndex(PageSource* pages = PageSource::System());
  ~RowIndex();
  RowIndex(RowIndex&&) noexcept;
  RowIndex& operator=(RowIndex&&) noexcept;
  RowIndex(const RowIndex&) = delete;
  RowIndex& operator=(const RowIndex&) = delete;

  static int PartOf(Key key);

  // locations[i] of keys[i], or kNoLocation.
  void Find(const Key* keys, int64_t n, uint64_t* locations) const;

  // The same for rows in memory: calls then(i, row) in order, where row is
  // row_of(location), null where there is none, and the row's first lines have
  // been fetched while others were searched. REQUIRES: not empty. Defined in
  // row_index_state.h.
  template <class RowOf, class Then>
  void FindRows(const Key* keys, int64_t n, int64_t row_bytes,
                const RowOf& row_of, const Then& then) const;

  // Makes room for these keys, those which are there or occur twice included,
  // and for locations below `max_location`. After ok, one Put of them takes no
  // memory and cannot fail. kNoMemory: nothing has changed but the room.
  // kInvalidArgument: max_location is above 2^kMostLocationBits.
  Status Reserve(const Key* keys, int64_t n, uint64_t max_location);
  // Makes room for n more rows of any keys: a hint before a bulk load, after
  // which Reserve has little left to do.
  Status ReserveRows(int64_t n, uint64_t max_location);
  // What bytes() would be at most after Reserve of the same arguments, and
  // while it runs.
  int64_t BytesAfterReserve(const Key* keys, int64_t n,
                            uint64_t max_location) const;

  // Sets the location of each key; old[i] is what it was before, or
  // kNoLocation. REQUIRES: Reserve of these keys, and none since.
  void Put(const Key* keys, const uint64_t* locations, int64_t n,
           uint64_t* old);
  // Removes; old[i] as above.
  void Erase(const Key* keys, int64_t n, uint64_t* old);
  // Where keys[i] is still at from[i], sets to[i], which is below the reserved
  // max_location, and moved[i] = 1; otherwise moved[i] = 0.
  void Move(const Key* keys, const uint64_t* from, const uint64_t* to,
            int64_t n, uint8_t* moved);
  // Removes all and gives the memory back.
  void Clear();

  // The entries from *cursor (0 to begin) on, at most `most` >= 1 of them.
  // Returns how many and moves *cursor; 0 at the end. Every entry is met once
  // as long as nothing is changed in between.
  int64_t Scan(uint64_t* cursor, int64_t most, Key* keys,
               uint64_t* locations) const;

  int64_t size() const;
  // All memory that it holds.
  int64_t bytes() const;

 private:
  struct Part;
  struct State;

  Status Grow(const int64_t* more, uint64_t max_location);

  PageSource* pages_;
  std::unique_ptr<State> state_;  // null while empty
};

}  // namespace oneemb
