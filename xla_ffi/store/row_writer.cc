#include "store/row_writer.h"

#include <algorithm>
#include <new>
#include <utility>

namespace oneemb {

RowWriter::RowWriter(std::shared_ptr<Store> store, int64_t most_rows)
    : store_(std::move(store)),
      most_rows_(most_rows),
      thread_([this] { WriteAll(); }) {}

void RowWriter::Close(bool forked) {
  if (!thread_.joinable()) return;
  if (forked) {
    thread_.detach();
    return;
  }
  {
    const MutexLock lock(mutex_);
    stop_ = true;
  }
  changed_.NotifyAll();
  thread_.join();
  // By this thread: whoever has the writer last may be one that must not wait
  // for rows to arrive.
  std::deque<std::shared_ptr<const WriteBatch>> dropped;
  const MutexLock lock(mutex_);
  dropped.swap(writes_);
  waiting_rows_ = 0;
  store_.reset();
}

void RowWriter::WriteAll() {
  const MutexLock lock(mutex_);
  while (!stop_) {
    if (!writes_.empty() && !broken_) {
      WriteFront();
    } else {
      changed_.Wait(mutex_);
    }
  }
}

void RowWriter::WriteFront() {
  std::shared_ptr<const WriteBatch> batch = writes_.front();
  mutex_.Unlock();
  Status status = batch->AwaitRows();
  if (status.ok()) {
    status = store_->Put(batch->keys.span(), batch->rows.data());
  }
  mutex_.Lock();
  if (status.ok()) {
    waiting_rows_ -= batch->keys.size();
    writes_.pop_front();
  } else {
    broken_ = true;
    if (untold_.ok()) untold_ = status;
    error_ = std::move(status);
  }
  changed_.NotifyAll();
  // It may take long to free it.
  mutex_.Unlock();
  batch.reset();
  mutex_.Lock();
}

// Waits until at most `most` rows wait to be written, asking a Store that could
// not write once more.
Status RowWriter::AwaitWrites(int64_t most) {
  broken_ = false;
  changed_.NotifyAll();
  while (waiting_rows_ > most && !broken_ && !stop_) changed_.Wait(mutex_);
  return broken_ ? error_ : Status();
}

Status RowWriter::AwaitRoom(int64_t rows) {
  const MutexLock lock(mutex_);
  // A Store that cannot write gets no more rows until it has those that wait.
  return AwaitWrites(broken_ ? 0 : std::max<int64_t>(0, most_rows_ - rows));
}

void RowWriter::Write(SourceVector<Key> keys, AlignedBuffer rows,
                      std::shared_ptr<Arrival> arriving) {
  std::shared_ptr<const WriteBatch> batch;
  try {
    batch = std::make_shared<const WriteBatch>(std::move(keys), std::move(rows),
                                               std::move(arriving));
  } catch (const std::bad_alloc&) {
    // Not before they have arrived may the rows' memory go.
    if (arriving != nullptr) (void)arriving->Await();
    throw;
  }
  const MutexLock lock(mutex_);
  writes_.push_back(batch);
  waiting_rows_ += batch->keys.size();
  changed_.NotifyAll();
}

Status RowWriter::Drain() {
  const MutexLock lock(mutex_);
  return AwaitWrites(0);
}

WriteBatches RowWriter::Waiting() {
  const MutexLock lock(mutex_);
  return {writes_.begin(), writes_.end()};
}

Status RowWriter::TakeError() {
  const MutexLock lock(mutex_);
  return std::exchange(untold_, Status());
}

}  // namespace oneemb
