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

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "store/aligned_buffer.h"
#include "store/batch_keys.h"
#include "store/mutex.h"
#include "store/source_vector.h"
#include "store/store.h"
#include "store/taken_rows.h"

namespace oneemb {

// Calls come from one thread at a time; only the mover's own run beside them.
class RowMover {
 public:
  // At most `most_rows` rows wait to be written, and as many are read ahead.
  RowMover(std::shared_ptr<Store> store, int64_t most_rows);
  ~RowMover() { Close(); }
  RowMover(const RowMover&) = delete;
  RowMover& operator=(const RowMover&) = delete;

  // Rows of distinct keys that the device tier lacks and is about to take, all
  // in memory from `source`; the status as in Store::Fetch.
  Status Take(KeySpan keys, BufferSource* source, TakenRows* taken);
  // The same for keys that it will not take. They may occur twice.
  Status Peek(KeySpan keys, Access access, BufferSource* source,
              TakenRows* taken);

  // Waits until so many more rows may wait to be written. On an error they are
  // to stay where they are: the Store cannot write, and earlier rows wait
  // already.
  Status AwaitRoom(int64_t rows);
  // Takes over rows that the device tier gives up, after AwaitRoom.
  void Write(SourceVector<Key> keys, AlignedBuffer rows);
  // Waits until nothing is left to be written. On an error something is.
  Status Drain();
  // Keys and rows that wait to be written; the newest of each key.
  void Waiting(std::vector<Key>* keys, std::vector<char>* rows);

  // Begins to read keys that the device tier lacks, into memory from `source`.
  // Returns how many of them there was room for, with those that are read
  // already. Does not wait.
  int64_t Prefetch(KeySpan keys, BufferSource* source);
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
    WriteBatch(SourceVector<Key> from, AlignedBuffer data)
        : keys(std::move(from)), rows(std::move(data)) {}
    const BatchKeys keys;
    const AlignedBuffer rows;
  };
  // Rows that are read ahead.
  struct ReadBatch {
    ReadBatch(SourceVector<Key> from, BufferSource* memory)
        : keys(std::move(from)),
          source(memory),
          taken(static_cast<size_t>(keys.size())),
          left(keys.size()) {}
    const BatchKeys keys;
    BufferSource* const source;
    // By the mover's reader, and to be read when it is done:
    TakenRows rows;
    bool whole = false;  // every row could be read
    bool done = false;   // under mutex_
    // The caller's: which rows the device tier has taken, and how many not.
    std::vector<uint8_t> taken;
    int64_t left;
    uint64_t due = 0;  // the number of stages after which it is forgotten
  };
  using WriteBatches = std::vector<std::shared_ptr<const WriteBatch>>;
  // Rows from `from` on of a batch of ahead_, and that many from `to` on of the
  // batch that is wanted.
  struct Claim {
    size_t batch = 0;
    int64_t from = 0;
    int64_t to = 0;
    int64_t count = 0;
  };
  // The rows of a batch that have to be brought.
  struct Unfound {
    std::vector<int64_t> below;   // the Store's
    std::vector<int64_t> copied;  // those that wait where they cannot stay
    WriteBatches writes;          // where that is
    int64_t size() const {
      return static_cast<int64_t>(below.size() + copied.size());
    }
  };

  Status ForkedStatus() const;
  void WriteAll();
  void ReadAll();
  void FreeDropped() ONEEMB_REQUIRES(mutex_);
  void WriteFront() ONEEMB_REQUIRES(mutex_);
  void ReadFront() ONEEMB_REQUIRES(mutex_);
  WriteBatches Writes();
  bool FindAhead(KeySpan keys, int64_t first, Claim* claim) const;
  bool TakeBatch(KeySpan keys, const Claim& claim, BufferSource* source,
                 TakenRows* taken);
  void TakeClaims(const std::vector<Claim>& claims, BufferSource* source,
                  std::vector<int64_t>* rest, TakenRows* taken);
  std::pair<int32_t, const char*> FindWaiting(const WriteBatches& writes,
                                              Key key) const;
  Unfound FindWaiting(KeySpan keys, const std::vector<int64_t>& positions,
                      const BufferSource* keeps_in, TakenRows* taken);
  Status Fetch(KeySpan keys, const Unfound& unfound, Access access,
               std::shared_ptr<AlignedBuffer> memory, TakenRows* taken);
  Status FindRest(KeySpan keys, const std::vector<int64_t>& positions,
                  Access access, BufferSource* source, bool keeps,
                  TakenRows* taken);
  bool AwaitDone(const ReadBatch& batch);
  Status AwaitWrites(int64_t most) ONEEMB_REQUIRES(mutex_);
  void Drop(const std::shared_ptr<ReadBatch>& batch);

  std::shared_ptr<Store> store_;  // null when closed
  const std::string path_;
  const int64_t row_bytes_;
  const int64_t most_rows_;
  const pid_t process_;

  // The caller's.
  std::deque<std::shared_ptr<ReadBatch>> ahead_;  // in order of their making
  int64_t staged_rows_ = 0;
  uint64_t stages_ = 0;
  // Whether the batch that was taken last was not as it had been read ahead:
  // the next is not likely to be either.
  std::atomic<bool> index_wanted_{false};

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
  // Batches that nobody wants any more. To free large ones takes time, which
  // the caller is spared.
  std::vector<std::shared_ptr<ReadBatch>> dropped_ ONEEMB_GUARDED_BY(mutex_);
  bool stop_ ONEEMB_GUARDED_BY(mutex_) = false;
  // Last: they use the rest.
  std::thread writer_;
  std::thread reader_;
};

}  // namespace oneemb
