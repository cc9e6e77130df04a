// Moves rows between a device tier and its Store, on threads of its own: one
// writes, one reads.
//
// Rows that are evicted are handed over and written in the order in which they
// came; until they are written, this is where they are read. Rows that a later
// batch will want are read ahead. Of a key's row there is one that counts:
//   in the device tier, else the newest that waits to be written, else the
//   Store's. A row that was read ahead is a copy of that one, and gone as soon
//   as the device tier takes the key.
// So writes and reads ahead need not wait for each other, nor anybody for a
// write.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "store/aligned_buffer.h"
#include "store/key_index.h"
#include "store/mutex.h"
#include "store/store.h"

namespace oneemb {

// How the rows of a batch were come by.
struct TakeReport {
  int64_t prefetched = 0;  // read ahead
  bool waited = false;     // for the Store
};

// Calls come from one thread at a time; only the mover's own run beside them.
class RowMover {
 public:
  // At most `most_rows` rows wait to be written, and as many are read ahead.
  RowMover(std::shared_ptr<Store> store, int64_t most_rows);
  ~RowMover() { Close(); }
  RowMover(const RowMover&) = delete;
  RowMover& operator=(const RowMover&) = delete;

  // Rows of distinct keys that the device tier lacks and is about to take;
  // found[i] and the status as in Store::Fetch.
  Status Take(KeySpan keys, char* rows, uint8_t* found, TakeReport* report);
  // The same for keys that it will not take. They may occur twice.
  Status Peek(KeySpan keys, char* rows, uint8_t* found, Access access);

  // Takes over rows that the device tier gives up. On an error they stay where
  // they were: the Store cannot write, and earlier rows wait already.
  Status Write(std::vector<Key> keys, AlignedBuffer rows);
  // Waits until nothing is left to be written. On an error something is.
  Status Drain();
  // Keys and rows that wait to be written; the newest of each key.
  void Waiting(std::vector<Key>* keys, std::vector<char>* rows);

  // Begins to read keys that the device tier lacks. Returns how many of them
  // there was room for, with those that are read already. Does not wait.
  int64_t Prefetch(KeySpan keys);
  // A batch of `rows` rows has been staged: they leave that much less room for
  // reading ahead. Forgets what was read ahead for batches that have gone by.
  void EndStage(int64_t rows);

  // Ends the threads and lets go of the Store; drops what is not written. From
  // then on only TakeError, Forked and Close may be called.
  void Close();

  // Whether this is a fork of the process that made it.
  bool Forked() const;

  // The first error of writing that nobody has been told of yet, once.
  Status TakeError();

 private:
  // Rows to be written; never changed.
  struct WriteBatch {
    WriteBatch(std::vector<Key> from, AlignedBuffer data)
        : keys(std::move(from)),
          index({keys.data(), static_cast<int64_t>(keys.size())}),
          rows(std::move(data)) {}
    const std::vector<Key> keys;
    const KeyIndex index;
    const AlignedBuffer rows;
  };
  // Rows that are read ahead.
  struct ReadBatch {
    // The first `to_read` keys are the Store's to read.
    ReadBatch(std::vector<Key> from, int64_t reads)
        : keys(std::move(from)),
          to_read(reads),
          index({keys.data(), static_cast<int64_t>(keys.size())}),
          found(keys.size()),
          taken(keys.size()),
          left(static_cast<int64_t>(keys.size())) {}
    const std::vector<Key> keys;
    const int64_t to_read;
    const KeyIndex index;
    // The mover's reader fills these; they may be read when it is done.
    AlignedBuffer rows;
    std::vector<uint8_t> found;
    bool done = false;  // under mutex_
    // The caller's: which rows the device tier has taken, and how many not.
    std::vector<uint8_t> taken;
    int64_t left;
    uint64_t due = 0;  // the number of stages after which it is forgotten
  };
  using WriteBatches = std::vector<std::shared_ptr<const WriteBatch>>;
  // Row i of a batch is row `from` of one that was read ahead.
  struct Claim {
    std::shared_ptr<ReadBatch> batch;
    int64_t from;
    int64_t to;
  };

  Status ForkedStatus() const;
  void WriteAll();
  void ReadAll();
  void WriteFront() ONEEMB_REQUIRES(mutex_);
  void ReadFront() ONEEMB_REQUIRES(mutex_);
  WriteBatches Writes();
  bool CopyWaiting(const WriteBatches& writes, Key key, uint64_t hash,
                   char* row) const;
  bool FindAhead(Key key, uint64_t hash, int64_t to, Claim* claim) const;
  Status FetchSome(KeySpan keys, const std::vector<int64_t>& positions,
                   char* rows, uint8_t* found, Access access);
  bool AwaitDone(const ReadBatch& batch);
  Status AwaitWrites(int64_t most) ONEEMB_REQUIRES(mutex_);
  void Forget(const std::shared_ptr<ReadBatch>& batch);

  std::shared_ptr<Store> store_;  // null when closed
  const std::string path_;
  const int64_t row_bytes_;
  const int64_t most_rows_;
  const pid_t process_;

  // The caller's.
  std::deque<std::shared_ptr<ReadBatch>> ahead_;  // in order of their making
  int64_t staged_rows_ = 0;
  uint64_t stages_ = 0;

  Mutex mutex_;
  CondVar changed_;
  std::deque<std::shared_ptr<const WriteBatch>> writes_
      ONEEMB_GUARDED_BY(mutex_);
  int64_t waiting_rows_ ONEEMB_GUARDED_BY(mutex_) = 0;  // of writes_
  // The Store could not write the front of writes_; nobody has asked it again.
  bool broken_ ONEEMB_GUARDED_BY(mutex_) = false;
  Status write_error_ ONEEMB_GUARDED_BY(mutex_);  // while broken_
  Status untold_ ONEEMB_GUARDED_BY(mutex_);
  std::deque<std::shared_ptr<ReadBatch>> reads_ ONEEMB_GUARDED_BY(mutex_);
  bool stop_ ONEEMB_GUARDED_BY(mutex_) = false;
  // Last: they use the rest.
  std::thread writer_;
  std::thread reader_;
};

}  // namespace oneemb
