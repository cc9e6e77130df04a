// Writes rows to a Store in the order in which they come, on a thread of its
// own.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "store/aligned_buffer.h"
#include "store/arrival.h"
#include "store/batch_keys.h"
#include "store/mutex.h"
#include "store/source_vector.h"
#include "store/status.h"
#include "store/store.h"

namespace oneemb {

// Rows to be written; never changed.
class WriteBatch {
 public:
  // `arriving` is null when the rows are there.
  WriteBatch(SourceVector<Key> from, AlignedBuffer data,
             std::shared_ptr<Arrival> arriving)
      : keys(std::move(from)),
        rows(std::move(data)),
        arriving_(std::move(arriving)) {}
  ~WriteBatch() { (void)AwaitRows(); }
  WriteBatch(const WriteBatch&) = delete;
  WriteBatch& operator=(const WriteBatch&) = delete;

  // Before anybody looks at the rows.
  Status AwaitRows() const {
    return arriving_ == nullptr ? Status() : arriving_->Await();
  }

  const BatchKeys keys;
  const AlignedBuffer rows;

 private:
  const std::shared_ptr<Arrival> arriving_;
};
using WriteBatches = std::vector<std::shared_ptr<const WriteBatch>>;

// Thread-safe, but for Close.
class RowWriter {
 public:
  // At most `most_rows` rows wait to be written.
  RowWriter(std::shared_ptr<Store> store, int64_t most_rows);
  ~RowWriter() { Close(false); }
  RowWriter(const RowWriter&) = delete;
  RowWriter& operator=(const RowWriter&) = delete;

  // Waits until so many more rows may wait to be written. On an error they are
  // to stay where they are: the Store cannot write, and earlier rows wait
  // already.
  Status AwaitRoom(int64_t rows);
  // Takes over rows, after AwaitRoom. They may be still on their way there.
  void Write(SourceVector<Key> keys, AlignedBuffer rows,
             std::shared_ptr<Arrival> arriving);
  // Waits until nothing is left to be written. On an error something is.
  Status Drain();
  // What waits to be written, the oldest first.
  WriteBatches Waiting();
  // The first error of writing that nobody has been told of yet, once.
  Status TakeError();

  // Ends the thread, which in a fork is the parent's, and lets go of the Store;
  // drops what is not written.
  void Close(bool forked);

 private:
  void WriteAll();
  void WriteFront() ONEEMB_REQUIRES(mutex_);
  Status AwaitWrites(int64_t most) ONEEMB_REQUIRES(mutex_);

  std::shared_ptr<Store> store_;  // null when closed
  const int64_t most_rows_;

  Mutex mutex_;
  CondVar changed_;
  std::deque<std::shared_ptr<const WriteBatch>> writes_
      ONEEMB_GUARDED_BY(mutex_);
  int64_t waiting_rows_ ONEEMB_GUARDED_BY(mutex_) = 0;  // of writes_
  // The front of writes_ could not be written; nobody has asked for it again.
  bool broken_ ONEEMB_GUARDED_BY(mutex_) = false;
  Status error_ ONEEMB_GUARDED_BY(mutex_);  // while broken_
  Status untold_ ONEEMB_GUARDED_BY(mutex_);
  bool stop_ ONEEMB_GUARDED_BY(mutex_) = false;
  std::thread thread_;  // last: it uses the rest
};

}  // namespace oneemb
