// Moves rows between a device tier and its Store, on threads of its own: one
// writes, one reads.
//
// Rows that are evicted are handed over and written in the order in which they
// came (store/row_writer.h); until they are written, this is where they are
// read. Rows that a later batch will want are read ahead. Of a key's row there
// is one that counts:
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
#include "store/row_writer.h"
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

  // Whether so many keys are just what was read ahead at once. Then TakeAhead
  // gives their rows, unless they could not be read.
  bool IsAhead(const KeyFingerprint& keys, int64_t count,
               const BufferSource* source) const {
    return FindAhead(keys, count, source) != nullptr;
  }
  bool TakeAhead(const KeyFingerprint& keys, int64_t count,
                 const BufferSource* source, TakenRows* taken);
  // Rows of distinct keys that the device tier lacks and is about to take, all
  // in memory from `source`; the status as in Store::Fetch.
  Status Take(KeySpan keys, BufferSource* source, TakenRows* taken);
  // The same for keys that it will not take. They may occur twice.
  Status Peek(KeySpan keys, Access access, BufferSource* source,
              TakenRows* taken);

  // As RowWriter has them, of rows that the device tier gives up.
  Status AwaitRoom(int64_t rows);
  void Write(SourceVector<Key> keys, AlignedBuffer rows,
             std::shared_ptr<Arrival> arriving = nullptr);
  Status Drain();
  // Keys and rows that wait to be written; the newest of each key.
  void Waiting(std::vector<Key>* keys, std::vector<char>* rows);

  // Begins to read keys that the device tier lacks, into memory from `source`.
  // Returns how many of them there was room for, with those that are read
  // already. Does not wait.
  int64_t Prefetch(KeySpan keys, BufferSource* source,
                   const KeyFingerprint& fingerprint = {});
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
  // Rows that are read ahead.
  struct ReadBatch {
    ReadBatch(SourceVector<Key> from, BufferSource* memory)
        : keys(std::move(from)),
          source(memory),
          taken(static_cast<size_t>(keys.size())),
          left(keys.size()) {}
    const BatchKeys keys;
    BufferSource* const source;
    KeyFingerprint fingerprint;
    // By the mover's reader, and to be read when it is done:
    TakenRows rows;
    bool whole = false;  // every row could be read
    bool done = false;   // under mutex_
    // The caller's: which rows the device tier has taken, and how many not.
    std::vector<uint8_t> taken;
    int64_t left;
    uint64_t due = 0;  // the number of stages after which it is forgotten
  };
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
    std::vector<std::shared_ptr<const void>> held;  // where that is
    int64_t size() const {
      return static_cast<int64_t>(below.size() + copied.size());
    }
  };

  Status ForkedStatus() const;
  void ReadAll();
  void FreeDropped() ONEEMB_REQUIRES(mutex_);
  void ReadFront() ONEEMB_REQUIRES(mutex_);
  std::shared_ptr<ReadBatch> FindAhead(const KeyFingerprint& keys,
                                       int64_t count,
                                       const BufferSource* source) const;
  bool FindAhead(KeySpan keys, int64_t first, Claim* claim) const;
  bool TakeWhole(const std::shared_ptr<ReadBatch>& batch, TakenRows* taken);
  bool TakeBatch(KeySpan keys, const Claim& claim, BufferSource* source,
                 TakenRows* taken);
  void TakeClaims(const std::vector<Claim>& claims, BufferSource* source,
                  std::vector<int64_t>* rest, TakenRows* taken);
  std::pair<int32_t, const char*> FindWaiting(const WriteBatches& writes,
                                              Key key) const;
  Status FindWaiting(KeySpan keys, const std::vector<int64_t>& positions,
                     const BufferSource* keeps_in, TakenRows* taken,
                     Unfound* unfound);
  Status Fetch(KeySpan keys, const Unfound& unfound, Access access,
               std::shared_ptr<AlignedBuffer> memory, TakenRows* taken);
  Status FindRest(KeySpan keys, const std::vector<int64_t>& positions,
                  Access access, BufferSource* source, bool ahead,
                  TakenRows* taken);
  static void BringNear(const AlignedBuffer& memory, TakenRows* taken);
  bool AwaitDone(const ReadBatch& batch);
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
  std::deque<std::shared_ptr<ReadBatch>> reads_ ONEEMB_GUARDED_BY(mutex_);
  // Batches that nobody wants any more. To free large ones takes time, which
  // the caller is spared.
  std::vector<std::shared_ptr<ReadBatch>> dropped_ ONEEMB_GUARDED_BY(mutex_);
  bool stop_ ONEEMB_GUARDED_BY(mutex_) = false;
  RowWriter writer_;
  std::thread reader_;  // last: it uses the rest
};

}  // namespace oneemb
