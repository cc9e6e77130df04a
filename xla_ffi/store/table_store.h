// The Store of a cached table, found by the table's name: what a table and its
// Store must agree on, and what went wrong where nobody could be told.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/residency.h"
#include "store/history.h"
#include "store/mutex.h"
#include "store/row_mover.h"
#include "store/status.h"
#include "store/store.h"

namespace oneemb {

class StagedBatch;   // tier/staged_batch.h
struct StageMemory;  // tier/cached_table.cc

// What happened between the device tier and its Store.
struct TierFigures {
  std::atomic<int64_t> hits{0};         // distinct ids staged, in the tier
  std::atomic<int64_t> misses{0};       // the others
  std::atomic<int64_t> prefetched{0};   // of them read ahead
  std::atomic<int64_t> refused{0};      // ids with no room to be read ahead
  std::atomic<int64_t> stalls{0};       // batches that waited for the Store
  std::atomic<int64_t> victims{0};      // rows evicted
  std::atomic<int64_t> write_backs{0};  // of them written down
  std::atomic<int64_t> unstaged{0};     // ids looked up without being staged
  std::atomic<int64_t> stale{0};        // lookups refused on a stale table

  void Reset();
};

// What a table says of itself.
struct TableStamp {
  uint64_t nonce;
  uint32_t generation;
};

// Thread-safe.
class TableStore {
 public:
  // Of a device tier with so many slots.
  TableStore(std::shared_ptr<Store> store, int64_t slots, uint64_t nonce)
      : nonce_(nonce),
        row_bytes_(store->options().row_bytes),
        store_(std::move(store)),
        mover_(store_, slots) {}
  ~TableStore() = default;
  TableStore(const TableStore&) = delete;
  TableStore& operator=(const TableStore&) = delete;

  uint64_t nonce() const { return nonce_; }
  int64_t row_bytes() const { return row_bytes_; }
  TierFigures& figures() { return figures_; }

  // Held while an operation runs, from Judge to Advance: what follows is there
  // for a table that is not stale.
  Mutex& operations() { return operations_; }
  Store* store() const { return store_.get(); }
  RowMover& mover() { return mover_; }
  // What the last look for victims found beyond what it was for (cpu/tier.h).
  std::vector<TierVictim>& victims() { return victims_; }
  // What `stage` works in, kept from batch to batch: memory that is new to the
  // process takes longer to get than what is done in it.
  std::shared_ptr<StageMemory>& stage_memory() { return stage_memory_; }
  // How many slots the newest table has reserved at most: what a GPU makes of
  // them is not taken off.
  int64_t& reserved() { return reserved_; }

  // The batch that was staged last, or null. It does not change any more.
  std::shared_ptr<const StagedBatch> staged() const;
  void SetStaged(std::shared_ptr<const StagedBatch> batch);

  uint32_t generation() const;
  Standing Judge(TableStamp stamp, Operation operation, uint64_t digest,
                 int64_t run) const;
  bool MayRead(TableStamp stamp, int64_t run) const;
  void Advance(Operation operation, uint64_t digest, int64_t run);

  // Replaces all rows by a snapshot's, between two operations: from then on all
  // tables so far are stale, those of operations under way included. Any error
  // leaves the Store and its table as they were.
  Status Replace(const std::string& folder);

  // Keys and rows that wait to be written, after an attempt to do so.
  void Settle(std::vector<Key>* keys, std::vector<char>* rows);

  // Lets go of the Store between two operations: from then on all tables are
  // stale. In a fork, whose threads and locks are the parent's, nothing ends.
  void Retire();

  // Whether this is another process, a fork of the one that made it.
  bool Forked() const { return mover_.Forked(); }

  // Keeps the first error that nobody has been told of yet.
  void Report(const Status& status);
  // That error, once; ok when there is none.
  Status TakeError();

 private:
  void DrainAhead();

  const uint64_t nonce_;
  const int64_t row_bytes_;
  TierFigures figures_;
  Mutex operations_;
  std::shared_ptr<Store> store_;  // null some time after it is retired
  bool retired_ = false;          // under operations_
  RowMover mover_;
  std::vector<TierVictim> victims_;
  std::shared_ptr<StageMemory> stage_memory_;
  int64_t reserved_ = 0;
  mutable Mutex mutex_;
  History history_ ONEEMB_GUARDED_BY(mutex_);
  // No table so far is of this Store any more.
  bool ended_ ONEEMB_GUARDED_BY(mutex_) = false;
  Status error_ ONEEMB_GUARDED_BY(mutex_);
  std::shared_ptr<const StagedBatch> staged_ ONEEMB_GUARDED_BY(mutex_);
};

// The Stores of this process by the names of their tables. Thread-safe.

// Makes `store` the one of `name`, in the place of any before: its tables are
// stale from now on. Returns a nonce that no other Store has.
uint64_t AttachStore(const std::string& name, std::shared_ptr<Store> store,
                     int64_t slots);
// Null when there is none.
std::shared_ptr<TableStore> FindStore(const std::string& name);
// Retires the Store of `name` if it has this nonce.
void DetachStore(const std::string& name, uint64_t nonce);

}  // namespace oneemb
