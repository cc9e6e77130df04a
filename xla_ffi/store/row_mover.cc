#include "store/row_mover.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <utility>

namespace oneemb {
namespace {

// For how many batches longer than its turn a row that was read ahead is kept,
// if no batch takes it: a program may stage several batches a step.
constexpr uint64_t kPatience = 4;
// No batch is asked for earlier than this many before its turn. Without a bound
// rows that nobody takes would make those behind them wait longer and longer.
constexpr uint64_t kMostAhead = 16;

}  // namespace

RowMover::RowMover(std::shared_ptr<Store> store, int64_t most_rows)
    : store_(std::move(store)),
      path_(store_->options().path),
      row_bytes_(store_->options().row_bytes),
      most_rows_(most_rows),
      process_(getpid()),
      writer_([this] { WriteAll(); }),
      reader_([this] { ReadAll(); }) {}

void RowMover::Close() {
  if (store_ == nullptr) return;
  if (Forked()) {
    writer_.detach();  // they are the parent's
    reader_.detach();
    return;
  }
  {
    const MutexLock lock(mutex_);
    stop_ = true;
  }
  changed_.NotifyAll();
  writer_.join();
  reader_.join();
  store_.reset();
}

bool RowMover::Forked() const { return getpid() != process_; }

Status RowMover::ForkedStatus() const {
  return {StatusKind::kUnavailable, path_ + ": this Store belongs to process " +
                                        std::to_string(process_) +
                                        ", not to its fork " +
                                        std::to_string(getpid())};
}

// ---- The mover's threads.

void RowMover::WriteAll() {
  const MutexLock lock(mutex_);
  while (!stop_) {
    if (!writes_.empty() && !broken_) {
      WriteFront();
    } else {
      changed_.Wait(mutex_);
    }
  }
}

void RowMover::ReadAll() {
  const MutexLock lock(mutex_);
  while (!stop_) {
    if (!reads_.empty()) {
      ReadFront();
    } else {
      changed_.Wait(mutex_);
    }
  }
}

void RowMover::WriteFront() {
  const std::shared_ptr<const WriteBatch> batch = writes_.front();
  mutex_.Unlock();
  const Status status = store_->Put(
      {batch->keys.data(), static_cast<int64_t>(batch->keys.size())},
      batch->rows.data());
  mutex_.Lock();
  if (status.ok()) {
    waiting_rows_ -= static_cast<int64_t>(batch->keys.size());
    writes_.pop_front();
  } else {
    broken_ = true;
    write_error_ = status;
    if (untold_.ok()) untold_ = status;
  }
  changed_.NotifyAll();
}

void RowMover::ReadFront() {
  const std::shared_ptr<ReadBatch> batch = reads_.front();
  reads_.pop_front();
  mutex_.Unlock();
  // Rows that it cannot read are read again when they are wanted: that is when
  // there is somebody to tell.
  const Status status = store_->Fetch({batch->keys.data(), batch->to_read},
                                      batch->rows.data(), batch->found.data());
  mutex_.Lock();
  (void)status.ok();
  batch->done = true;
  changed_.NotifyAll();
}

// ---- The caller's thread.

RowMover::WriteBatches RowMover::Writes() {
  const MutexLock lock(mutex_);
  return {writes_.begin(), writes_.end()};
}

bool RowMover::CopyWaiting(const WriteBatches& writes, Key key, uint64_t hash,
                           char* row) const {
  for (auto batch = writes.rbegin(); batch != writes.rend(); ++batch) {
    const int64_t at = (*batch)->index.Find(key, hash);
    if (at < 0) continue;
    std::memcpy(row, (*batch)->rows.data() + at * row_bytes_,
                static_cast<size_t>(row_bytes_));
    return true;
  }
  return false;
}

bool RowMover::FindAhead(Key key, uint64_t hash, int64_t to,
                         Claim* claim) const {
  for (const std::shared_ptr<ReadBatch>& batch : ahead_) {
    const int64_t from = batch->index.Find(key, hash);
    if (from < 0 || batch->taken[static_cast<size_t>(from)] != 0) continue;
    *claim = {batch, from, to};
    return true;
  }
  return false;
}

Status RowMover::FetchSome(KeySpan keys, const std::vector<int64_t>& positions,
                           char* rows, uint8_t* found, Access access) {
  if (positions.empty()) return {};
  const size_t count = positions.size();
  const auto width = static_cast<size_t>(row_bytes_);
  std::vector<Key> wanted(count);
  std::vector<uint8_t> there(count);
  AlignedBuffer buffer;
  for (size_t i = 0; i < count; ++i) wanted[i] = keys[positions[i]];
  Status status = buffer.Resize(static_cast<int64_t>(count * width));
  if (status.ok()) {
    status = store_->Fetch({wanted.data(), static_cast<int64_t>(count)},
                           buffer.data(), there.data(), access);
  } else {
    std::fill(there.begin(), there.end(), kRowFailed);
  }
  for (size_t i = 0; i < count; ++i) {
    found[positions[i]] = there[i];
    if (there[i] != kRowFound) continue;
    std::memcpy(rows + positions[i] * row_bytes_, buffer.data() + i * width,
                width);
  }
  return status;
}

bool RowMover::AwaitDone(const ReadBatch& batch) {
  const MutexLock lock(mutex_);
  const bool waits = !batch.done;
  while (!batch.done) changed_.Wait(mutex_);
  return waits;
}

Status RowMover::Take(KeySpan keys, char* rows, uint8_t* found,
                      TakeReport* report) {
  if (Forked()) {
    std::fill(found, found + keys.size, kRowFailed);
    return ForkedStatus();
  }
  const WriteBatches writes = Writes();
  std::vector<Claim> claims;
  std::vector<int64_t> rest;
  for (int64_t i = 0; i < keys.size; ++i) {
    const uint64_t hash = HashKey(keys[i]);
    Claim claim{};
    // What was read ahead goes first, or it would be left to grow old.
    if (FindAhead(keys[i], hash, i, &claim)) {
      claims.push_back(std::move(claim));
    } else if (CopyWaiting(writes, keys[i], hash, rows + i * row_bytes_)) {
      found[i] = kRowFound;
    } else {
      rest.push_back(i);
    }
  }
  report->waited = !rest.empty();
  Status status = FetchSome(keys, rest, rows, found, Access::kTrain);
  rest.clear();
  const ReadBatch* done = nullptr;
  for (const Claim& claim : claims) {
    ReadBatch& batch = *claim.batch;
    if (done != &batch && AwaitDone(batch)) report->waited = true;
    done = &batch;
    batch.taken[static_cast<size_t>(claim.from)] = 1;
    --batch.left;
    found[claim.to] = batch.found[static_cast<size_t>(claim.from)];
    if (found[claim.to] == kRowFailed) {
      rest.push_back(claim.to);
      continue;
    }
    ++report->prefetched;
    if (found[claim.to] == kRowAbsent) continue;
    std::memcpy(rows + claim.to * row_bytes_,
                batch.rows.data() + claim.from * row_bytes_,
                static_cast<size_t>(row_bytes_));
  }
  const Status again = FetchSome(keys, rest, rows, found, Access::kTrain);
  return status.ok() ? again : status;
}

Status RowMover::Peek(KeySpan keys, char* rows, uint8_t* found, Access access) {
  if (Forked()) {
    std::fill(found, found + keys.size, kRowFailed);
    return ForkedStatus();
  }
  const WriteBatches writes = Writes();
  std::vector<int64_t> rest;
  for (int64_t i = 0; i < keys.size; ++i) {
    const bool waiting =
        CopyWaiting(writes, keys[i], HashKey(keys[i]), rows + i * row_bytes_);
    if (waiting) found[i] = kRowFound;
    if (!waiting) rest.push_back(i);
  }
  return FetchSome(keys, rest, rows, found, access);
}

// Waits until at most `most` rows wait to be written, asking a Store that could
// not write once more.
Status RowMover::AwaitWrites(int64_t most) {
  broken_ = false;
  changed_.NotifyAll();
  while (waiting_rows_ > most && !broken_) changed_.Wait(mutex_);
  return broken_ ? write_error_ : Status();
}

Status RowMover::Write(std::vector<Key> keys, AlignedBuffer rows) {
  if (Forked()) return ForkedStatus();
  const auto count = static_cast<int64_t>(keys.size());
  const auto batch =
      std::make_shared<const WriteBatch>(std::move(keys), std::move(rows));
  const MutexLock lock(mutex_);
  // A Store that cannot write gets no more rows until it has those that wait.
  const int64_t most = broken_ ? 0 : std::max<int64_t>(0, most_rows_ - count);
  ONEEMB_RETURN_IF_ERROR(AwaitWrites(most));
  writes_.push_back(batch);
  waiting_rows_ += count;
  changed_.NotifyAll();
  return {};
}

Status RowMover::Drain() {
  if (Forked()) return ForkedStatus();
  const MutexLock lock(mutex_);
  return AwaitWrites(0);
}

void RowMover::Waiting(std::vector<Key>* keys, std::vector<char>* rows) {
  if (Forked()) return;
  const WriteBatches writes = Writes();
  for (size_t b = 0; b < writes.size(); ++b) {
    const WriteBatch& batch = *writes[b];
    for (size_t i = 0; i < batch.keys.size(); ++i) {
      const Key key = batch.keys[i];
      const auto newer = [&](const std::shared_ptr<const WriteBatch>& later) {
        return later->index.Find(key, HashKey(key)) >= 0;
      };
      const auto next = writes.begin() + static_cast<int64_t>(b) + 1;
      if (std::any_of(next, writes.end(), newer)) continue;
      const char* const row =
          batch.rows.data() + static_cast<int64_t>(i) * row_bytes_;
      keys->push_back(key);
      rows->insert(rows->end(), row, row + row_bytes_);
    }
  }
}

int64_t RowMover::Prefetch(KeySpan keys) {
  if (Forked()) return 0;
  const WriteBatches writes = Writes();
  int64_t room = most_rows_ - staged_rows_;
  for (const std::shared_ptr<ReadBatch>& batch : ahead_) room -= batch->left;
  std::vector<Key> wanted;
  std::vector<Key> waiting;  // those that are here
  int64_t had = 0;
  for (int64_t i = 0; i < keys.size; ++i) {
    const uint64_t hash = HashKey(keys[i]);
    Claim claim{};
    const auto waits = [&](const std::shared_ptr<const WriteBatch>& batch) {
      return batch->index.Find(keys[i], hash) >= 0;
    };
    if (FindAhead(keys[i], hash, i, &claim)) {
      ++had;
    } else if (room > 0) {
      --room;
      const bool here = std::any_of(writes.begin(), writes.end(), waits);
      (here ? waiting : wanted).push_back(keys[i]);
    }
  }
  const auto reads = static_cast<int64_t>(wanted.size());
  wanted.insert(wanted.end(), waiting.begin(), waiting.end());
  if (wanted.empty()) return had;
  auto batch = std::make_shared<ReadBatch>(std::move(wanted), reads);
  if (!batch->rows.Resize(batch->left * row_bytes_).ok()) return had;
  for (auto i = static_cast<size_t>(reads); i < batch->keys.size(); ++i) {
    const Key key = batch->keys[i];
    CopyWaiting(writes, key, HashKey(key),
                batch->rows.data() + static_cast<int64_t>(i) * row_bytes_);
    batch->found[i] = kRowFound;
  }
  ahead_.push_back(batch);
  batch->due =
      stages_ + std::min<uint64_t>(ahead_.size(), kMostAhead) + kPatience;
  const MutexLock lock(mutex_);
  batch->done = reads == 0;
  if (!batch->done) reads_.push_back(batch);
  changed_.NotifyAll();
  return had + batch->left;
}

void RowMover::Forget(const std::shared_ptr<ReadBatch>& batch) {
  const MutexLock lock(mutex_);
  const auto queued = std::find(reads_.begin(), reads_.end(), batch);
  if (queued != reads_.end()) reads_.erase(queued);
}

void RowMover::EndStage(int64_t rows) {
  staged_rows_ = rows;
  ++stages_;
  std::deque<std::shared_ptr<ReadBatch>> kept;
  for (const std::shared_ptr<ReadBatch>& batch : ahead_) {
    const bool used_up = batch->left == 0 && !batch->keys.empty();
    if (used_up || batch->due <= stages_) {
      Forget(batch);
    } else {
      kept.push_back(batch);
    }
  }
  ahead_ = std::move(kept);
}

Status RowMover::TakeError() {
  if (Forked()) return ForkedStatus();
  const MutexLock lock(mutex_);
  return std::exchange(untold_, Status());
}

}  // namespace oneemb
