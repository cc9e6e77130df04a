// A cache of rows in host memory, in front of the SSD tier.
//
// Rows that were changed here (dirty) are written to the SSD tier when they are
// evicted or saved. The cache does not write: it hands such rows out, keeps
// them, and is told when they are safe. So at every instant a row can be found
// in one of the two tiers.
//
// Which rows go is decided by S3-FIFO (s3_fifo.h). What the cache knows of a
// row stands in its index entry, which a search reads anyway: the location is
//
//   | slot | batch : 7 | writing : 1 | dirty : 1 | uses : 2 |
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "store/host_tier.h"
#include "store/index_shard.h"
#include "store/key.h"
#include "store/pages.h"
#include "store/row_arena.h"
#include "store/s3_fifo.h"
#include "store/status.h"

namespace oneemb {

struct HostCacheStats {
  int64_t hits = 0;
  int64_t misses = 0;
  int64_t evictions = 0;    // rows that left for want of room, dirty or not
  int64_t write_backs = 0;  // those of them that had to be written
};

// Not thread-safe, but for this: const calls and Fetch may run at the same time
// as each other. Rows are packed, row_bytes each.
class HostCache {
 public:
  // kInvalidArgument when the budget has no room for a single row.
  static Status Open(const HostTierOptions& options,
                     std::unique_ptr<HostCache>* cache,
                     PageSource* pages = PageSource::System());

  // Rows that fit the budget with all that is kept beside them: 31 bytes each.
  int64_t capacity() const { return capacity_; }

  // A batch in flight: rows fetched or inserted with it are not evicted before
  // it ends. 0 when kMostBatches are in flight: then nothing is pinned.
  static constexpr uint64_t kMostBatches = 64;
  uint64_t BeginBatch();
  // Also of 0, and in any order.
  void EndBatch(uint64_t batch);

  // Found rows are copied, counted as used and pinned for `batch`, unless that
  // is 0. found[i] = 1, or 0 and row i as it was.
  void Fetch(const Key* keys, int64_t n, char* rows, uint8_t* found,
             uint64_t batch = 0);
  // The same, but the cache learns nothing of it: for evaluation.
  void Peek(const Key* keys, int64_t n, char* rows, uint8_t* found) const;

  // How many of these keys have no row here: what to make room for. missing[i],
  // unless it is null, is 1 for each of them, else 0.
  int64_t CountMissing(const Key* keys, int64_t n,
                       uint8_t* missing = nullptr) const;
  // How many more rows find room at once.
  int64_t free_rows() const { return capacity_ - slots_ + num_free_; }

  // Makes room for n more rows, or for as many as can be. Clean rows go at
  // once; dirty ones are appended to *keys and *rows and stay, for Fetch too,
  // until DropVictims, or KeepVictims when they could not be written. One of
  // these two follows before the next MakeRoom. kNoMemory: nothing has changed.
  Status MakeRoom(int64_t n, std::vector<Key>* keys, std::vector<char>* rows);
  // They are written: they go, but for those which have been changed or pinned
  // in the meantime.
  void DropVictims();
  // They are not: they stay, dirty.
  void KeepVictims();

  // Adds rows or overwrites them, in order. dirty: they are newer than the SSD
  // tier's; otherwise they are the SSD tier's, and a row that is here already
  // stays as it is. taken[i] = 0 where there was no room: the row is not here,
  // and if it is dirty the caller writes it to the SSD tier.
  void Insert(const Key* keys, const char* rows, int64_t n, bool dirty,
              uint8_t* taken, uint64_t batch = 0);
  // Removes rows, dirty or not. A victim may be removed before DropVictims, but
  // then it must not be written to the SSD tier any more.
  void Erase(const Key* keys, int64_t n);

  // The dirty rows from *cursor (0 to begin) on, at most `most` >= 5 of them,
  // victims left out. Returns how many and moves *cursor; 0 at the end.
  int64_t ScanDirty(uint64_t* cursor, int64_t most, Key* keys,
                    char* rows) const;
  // All that ScanDirty has shown is written. REQUIRES: nothing was inserted
  // since the scan began.
  void MarkClean();
  // Removes all rows, dirty or not, and forgets what it learnt.
  void Clear();

  int64_t size() const { return index_.size(); }
  int64_t num_buckets() const { return index_.num_buckets(); }  // of its index
  int64_t dirty() const { return dirty_; }
  // All memory that it holds; at most the budget, and constant.
  int64_t bytes() const { return bytes_; }
  HostCacheStats stats() const;

 private:
  struct Victim {
    uint32_t slot;
    bool from_main;
  };

  HostCache(const HostTierOptions& options, PageSource* pages);
  Status Allocate();
  bool Pinned(uint64_t location) const;
  void Touch(Place place, uint64_t batch) const;
  template <class Found>
  void FindEach(const Key* keys, int64_t n, const Found& found) const;
  bool NextVictim(uint32_t* slot, Place* place, bool* from_main);
  void Evict(uint32_t slot, bool from_main);
  Place VictimPlace(const Victim& victim) const;
  bool TakeSlot(uint32_t* slot);
  void FreeSlot(uint32_t slot);
  bool InsertOne(Key key, const char* row, bool dirty, uint64_t batch);

  const HostTierOptions options_;
  PageSource* const pages_;
  int64_t capacity_ = 0;
  int64_t bytes_ = 0;
  IndexShard index_;
  RowArena arena_;
  S3Fifo fifo_;
  // Slots below were in use at some time; those which no longer are form a
  // list, each holding the next in its first bytes.
  int64_t slots_ = 0;
  int64_t num_free_ = 0;
  uint32_t first_free_ = 0;

  std::vector<Victim> victims_;
  int64_t dirty_ = 0;
  int64_t evictions_ = 0;
  int64_t write_backs_ = 0;
  std::atomic<int64_t> hits_{0};
  std::atomic<int64_t> misses_{0};

  // Batches oldest_ ... newest_ may be in flight; ended_ tells which are not.
  uint64_t oldest_ = 1;
  uint64_t newest_ = 0;
  uint64_t ended_ = 0;  // bit b % 64 of batch b
};

}  // namespace oneemb
