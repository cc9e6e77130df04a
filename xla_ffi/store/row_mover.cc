#include "store/row_mover.h"

#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <new>
#include <numeric>
#include <utility>

#include "store/crew.h"

namespace oneemb {
namespace {

// For how many batches longer than its turn a row that was read ahead is kept,
// if no batch takes it: a program may stage several batches a step.
constexpr uint64_t kPatience = 4;
// No batch is asked for earlier than this many before its turn. Without a bound
// rows that nobody takes would make those behind them wait longer and longer.
constexpr uint64_t kMostAhead = 16;

// Keys that are worth a thread.
constexpr int64_t kGrain = 2048;

std::vector<int64_t> AllPositions(int64_t count) {
  std::vector<int64_t> positions(static_cast<size_t>(count));
  std::iota(positions.begin(), positions.end(), int64_t{0});
  return positions;
}

void SetFound(int64_t position, const char* row, TakenRows* taken) {
  taken->own.found[static_cast<size_t>(position)] = kRowFound;
  taken->own.rows[static_cast<size_t>(position)] = row;
}

void SetFailed(const std::vector<int64_t>& positions, TakenRows* taken) {
  for (const int64_t i : positions) {
    taken->own.found[static_cast<size_t>(i)] = kRowFailed;
    taken->own.rows[static_cast<size_t>(i)] = nullptr;
  }
}

void CountAbsent(TakenRows* taken) {
  const SourceVector<const char*>& rows = taken->own.rows;
  taken->absent = std::count(rows.begin(), rows.end(), nullptr);
}

}  // namespace

RowMover::RowMover(std::shared_ptr<Store> store, int64_t most_rows)
    : store_(std::move(store)),
      path_(store_->options().path),
      row_bytes_(store_->options().row_bytes),
      most_rows_(most_rows),
      process_(getpid()),
      writer_(store_, most_rows),
      reader_([this] { ReadAll(); }) {}

void RowMover::Close() {
  if (!reader_.joinable()) return;
  writer_.Close(Forked());
  if (Forked()) {
    reader_.detach();  // it is the parent's
    return;
  }
  {
    const MutexLock lock(mutex_);
    stop_ = true;
  }
  changed_.NotifyAll();
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

// ---- The reader's thread.

void RowMover::ReadAll() {
  const MutexLock lock(mutex_);
  while (!stop_) {
    // There may always be something to read.
    if (!dropped_.empty()) {
      FreeDropped();
    } else if (!reads_.empty()) {
      ReadFront();
    } else {
      changed_.Wait(mutex_);
    }
  }
}

void RowMover::ReadFront() {
  const std::shared_ptr<ReadBatch> batch = reads_.front();
  reads_.pop_front();
  mutex_.Unlock();
  // Rows that it cannot read are read again when they are wanted: that is when
  // there is somebody to tell.
  try {
    batch->rows.own.Begin(batch->keys.size(), kRowFailed, batch->source);
    batch->whole =
        FindRest(batch->keys.span(), AllPositions(batch->keys.size()),
                 Access::kTrain, batch->source, true, &batch->rows)
            .ok();
    CountAbsent(&batch->rows);
    // While nobody waits for that.
    if (index_wanted_) batch->keys.MakeIndex();
  } catch (const std::bad_alloc&) {
    batch->whole = false;
    batch->rows.Clear();
  }
  mutex_.Lock();
  batch->done = true;
  changed_.NotifyAll();
}

void RowMover::FreeDropped() {
  std::vector<std::shared_ptr<ReadBatch>> dropped = std::move(dropped_);
  dropped_.clear();
  mutex_.Unlock();
  dropped.clear();
  mutex_.Lock();
}

// ---- Of both.

// Of a key's rows that wait, the newest counts.
std::pair<int32_t, const char*> RowMover::FindWaiting(
    const WriteBatches& writes, Key key) const {
  for (size_t b = writes.size(); b > 0; --b) {
    const WriteBatch& batch = *writes[b - 1];
    const int64_t at = batch.keys.Find(key, 0);
    if (at < 0) continue;
    return {static_cast<int32_t>(b - 1), batch.rows.data() + at * row_bytes_};
  }
  return {-1, nullptr};
}

// Points to the rows that wait. Those in memory from `keeps_in` stay there, and
// what they are in is held; the others are to be copied. They have arrived, or
// cannot be had.
Status RowMover::FindWaiting(KeySpan keys,
                             const std::vector<int64_t>& positions,
                             const BufferSource* keeps_in, TakenRows* taken,
                             Unfound* unfound) {
  const WriteBatches writes = writer_.Waiting();
  const auto count = static_cast<int64_t>(positions.size());
  // For each key the number of the batch, or -1, and its row there.
  std::vector<std::pair<int32_t, const char*>> where(positions.size());
  // Made by one thread: of what many wait for none may fail.
  for (const auto& batch : writes) batch->keys.MakeIndex();
  Crew::Get()->ForRanges(count, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const auto at = static_cast<size_t>(i);
      where[at] = FindWaiting(writes, keys[positions[at]]);
    }
  });
  std::vector<uint8_t> seen(writes.size());
  Status status;
  for (size_t i = 0; i < where.size(); ++i) {
    const auto [b, row] = where[i];
    if (b < 0) {
      unfound->below.push_back(positions[i]);
      continue;
    }
    const auto& batch = writes[static_cast<size_t>(b)];
    const bool keeps = batch->rows.source() == keeps_in;
    if (std::exchange(seen[static_cast<size_t>(b)], uint8_t{1}) == 0) {
      if (Status arrived = batch->AwaitRows(); !arrived.ok()) status = arrived;
      (keeps ? taken->held : unfound->held).push_back(batch);
    }
    if (!status.ok()) continue;
    SetFound(positions[i], row, taken);
    if (!keeps) unfound->copied.push_back(positions[i]);
  }
  return status;
}

// `memory` has room for all that is unfound.
Status RowMover::Fetch(KeySpan keys, const Unfound& unfound, Access access,
                       std::shared_ptr<AlignedBuffer> memory,
                       TakenRows* taken) {
  char* row = memory->data();
  for (const int64_t i : unfound.copied) {
    const char*& there = taken->own.rows[static_cast<size_t>(i)];
    std::memcpy(row, there, static_cast<size_t>(row_bytes_));
    there = row;
    row += row_bytes_;
  }
  taken->held.push_back(std::move(memory));
  const size_t count = unfound.below.size();
  if (count == 0) return {};
  std::vector<Key> wanted(count);
  std::vector<uint8_t> found(count);
  for (size_t i = 0; i < count; ++i) wanted[i] = keys[unfound.below[i]];
  const Status status = store_->Fetch(
      {wanted.data(), static_cast<int64_t>(count)}, row, found.data(), access);
  for (size_t i = 0; i < count; ++i, row += row_bytes_) {
    const int64_t position = unfound.below[i];
    taken->own.found[static_cast<size_t>(position)] = found[i];
    if (found[i] == kRowFound) SetFound(position, row, taken);
  }
  return status;
}

// Rows that are all in one buffer go nearer to who is going to take them, if
// there is a place.
void RowMover::BringNear(const AlignedBuffer& memory, TakenRows* taken) {
  std::shared_ptr<const char> near =
      memory.source()->CopyNear(memory.data(), memory.size());
  if (near == nullptr) return;
  for (const char*& row : taken->own.rows) {
    if (row != nullptr) row = near.get() + (row - memory.data());
  }
  taken->near_list = memory.source()->CopyNear(
      reinterpret_cast<const char*>(taken->own.rows.data()),
      static_cast<int64_t>(taken->own.rows.size() * sizeof(const char*)));
  taken->held = {std::move(near)};
}

// Rows that were not read ahead, or those of a batch that is.
Status RowMover::FindRest(KeySpan keys, const std::vector<int64_t>& positions,
                          Access access, BufferSource* source, bool ahead,
                          TakenRows* taken) {
  if (positions.empty()) return {};
  // Of a batch that is read ahead all rows are copied: else a few of them would
  // keep all that came down together.
  Unfound unfound;
  Status waiting =
      FindWaiting(keys, positions, ahead ? nullptr : source, taken, &unfound);
  if (!waiting.ok()) SetFailed(positions, taken);
  if (unfound.size() == 0 || !waiting.ok()) return waiting;
  taken->waited = taken->waited || !unfound.below.empty();
  auto memory = std::make_shared<AlignedBuffer>();
  Status status = memory->Resize(unfound.size() * row_bytes_, source);
  if (!status.ok()) {
    SetFailed(unfound.below, taken);
    SetFailed(unfound.copied, taken);
    return status;
  }
  status = Fetch(keys, unfound, access, memory, taken);
  if (ahead) BringNear(*memory, taken);
  return status;
}

// ---- The caller's thread.

// The claim of keys from `first` on, as many as lie together: at most those up
// to the next that is not there. `claim` is the one before, behind which they
// are likely to be.
bool RowMover::FindAhead(KeySpan keys, int64_t first, Claim* claim) const {
  const size_t num_batches = ahead_.size();
  const int64_t guess = claim->from + claim->count;
  for (size_t k = 0; k < num_batches; ++k) {
    const size_t b = (claim->batch + k) % num_batches;
    const ReadBatch& batch = *ahead_[b];
    const int64_t from = batch.keys.Find(keys[first], k == 0 ? guess : 0);
    const auto goes_on = [&](int64_t i) {
      return first + i < keys.size && from + i < batch.keys.size() &&
             batch.keys.span()[from + i] == keys[first + i] &&
             batch.taken[static_cast<size_t>(from + i)] == 0;
    };
    if (from < 0 || !goes_on(0)) continue;
    *claim = {b, from, first, 1};
    while (goes_on(claim->count)) ++claim->count;
    return true;
  }
  return false;
}

// Takes the list of a batch that was read ahead as it is, if it is what is
// wanted: nobody needs to look at its rows one by one.
bool RowMover::TakeBatch(KeySpan keys, const Claim& claim, BufferSource* source,
                         TakenRows* taken) {
  const std::shared_ptr<ReadBatch>& batch = ahead_[claim.batch];
  return claim.count == keys.size && claim.count == batch->keys.size() &&
         batch->source == source && TakeWhole(batch, taken);
}

bool RowMover::TakeWhole(const std::shared_ptr<ReadBatch>& batch,
                         TakenRows* taken) {
  taken->waited = AwaitDone(*batch);
  if (!batch->whole) return false;
  batch->left = 0;
  taken->shared = {batch, &batch->rows.own};
  taken->near_list = batch->rows.near_list;
  taken->absent = batch->rows.absent;
  taken->prefetched = batch->keys.size();
  return true;
}

std::shared_ptr<RowMover::ReadBatch> RowMover::FindAhead(
    const KeyFingerprint& keys, int64_t count,
    const BufferSource* source) const {
  for (const std::shared_ptr<ReadBatch>& batch : ahead_) {
    if (keys.known() && batch->fingerprint == keys && batch->left == count &&
        batch->keys.size() == count && batch->source == source) {
      return batch;
    }
  }
  return nullptr;
}

bool RowMover::TakeAhead(const KeyFingerprint& keys, int64_t count,
                         const BufferSource* source, TakenRows* taken) {
  const std::shared_ptr<ReadBatch> batch = FindAhead(keys, count, source);
  if (batch == nullptr || !TakeWhole(batch, taken)) return false;
  index_wanted_ = false;
  return true;
}

// What cannot be had of them is left for the `rest`.
void RowMover::TakeClaims(const std::vector<Claim>& claims,
                          BufferSource* source, std::vector<int64_t>* rest,
                          TakenRows* taken) {
  const ReadBatch* last = nullptr;
  for (const Claim& claim : claims) {
    ReadBatch& batch = *ahead_[claim.batch];
    if (last != &batch) {
      taken->waited = AwaitDone(batch) || taken->waited;
      taken->held.push_back(ahead_[claim.batch]);
      last = &batch;
    }
    std::fill_n(batch.taken.begin() + claim.from, claim.count, uint8_t{1});
    batch.left -= claim.count;
    const RowList& list = batch.rows.own;
    if (batch.source == source && !list.rows.empty()) {
      std::copy_n(list.found.begin() + claim.from, claim.count,
                  taken->own.found.begin() + claim.to);
      std::copy_n(list.rows.begin() + claim.from, claim.count,
                  taken->own.rows.begin() + claim.to);
    }
    for (int64_t i = claim.to; i < claim.to + claim.count; ++i) {
      const bool failed =
          taken->own.found[static_cast<size_t>(i)] == kRowFailed;
      taken->prefetched += failed ? 0 : 1;
      if (failed) rest->push_back(i);
    }
  }
}

bool RowMover::AwaitDone(const ReadBatch& batch) {
  const MutexLock lock(mutex_);
  const bool waits = !batch.done;
  while (!batch.done) changed_.Wait(mutex_);
  return waits;
}

Status RowMover::Take(KeySpan keys, BufferSource* source, TakenRows* taken) {
  if (Forked()) return ForkedStatus();
  std::vector<Claim> claims;
  std::vector<int64_t> rest;
  Claim claim;
  for (int64_t i = 0; i < keys.size;) {
    // What was read ahead goes first, or it would be left to grow old.
    if (FindAhead(keys, i, &claim)) {
      claims.push_back(claim);
      i += claim.count;
    } else {
      rest.push_back(i++);
    }
  }
  index_wanted_ = claims.size() > 1 || !rest.empty();
  if (claims.size() == 1 && TakeBatch(keys, claims[0], source, taken)) {
    return {};
  }
  taken->own.Begin(keys.size, kRowFailed, source);
  const Status status =
      FindRest(keys, rest, Access::kTrain, source, false, taken);
  rest.clear();
  TakeClaims(claims, source, &rest, taken);
  const Status again =
      FindRest(keys, rest, Access::kTrain, source, false, taken);
  CountAbsent(taken);
  return status.ok() ? again : status;
}

Status RowMover::Peek(KeySpan keys, Access access, BufferSource* source,
                      TakenRows* taken) {
  taken->own.Begin(keys.size, kRowFailed, source);
  if (Forked()) return ForkedStatus();
  const Status status =
      FindRest(keys, AllPositions(keys.size), access, source, false, taken);
  CountAbsent(taken);
  return status;
}

Status RowMover::AwaitRoom(int64_t rows) {
  return Forked() ? ForkedStatus() : writer_.AwaitRoom(rows);
}

void RowMover::Write(SourceVector<Key> keys, AlignedBuffer rows,
                     std::shared_ptr<Arrival> arriving) {
  writer_.Write(std::move(keys), std::move(rows), std::move(arriving));
}

Status RowMover::Drain() { return Forked() ? ForkedStatus() : writer_.Drain(); }

void RowMover::Waiting(std::vector<Key>* keys, std::vector<char>* rows) {
  if (Forked()) return;
  const WriteBatches writes = writer_.Waiting();
  for (size_t b = 0; b < writes.size(); ++b) {
    const WriteBatch& batch = *writes[b];
    if (!batch.AwaitRows().ok()) continue;  // the writer tells of it
    for (int64_t i = 0; i < batch.keys.size(); ++i) {
      const Key key = batch.keys.span()[i];
      const auto newer = [&](const std::shared_ptr<const WriteBatch>& later) {
        return later->keys.Find(key, 0) >= 0;
      };
      const auto next = writes.begin() + static_cast<int64_t>(b) + 1;
      if (std::any_of(next, writes.end(), newer)) continue;
      const char* const row = batch.rows.data() + i * row_bytes_;
      keys->push_back(key);
      rows->insert(rows->end(), row, row + row_bytes_);
    }
  }
}

int64_t RowMover::Prefetch(KeySpan keys, BufferSource* source,
                           const KeyFingerprint& fingerprint) {
  if (Forked()) return 0;
  int64_t room = most_rows_ - staged_rows_;
  for (const std::shared_ptr<ReadBatch>& batch : ahead_) room -= batch->left;
  SourceVector<Key> wanted;
  wanted.reserve(
      static_cast<size_t>(std::max<int64_t>(0, std::min(room, keys.size))));
  int64_t had = 0;
  Claim claim;
  for (int64_t i = 0; i < keys.size;) {
    if (FindAhead(keys, i, &claim)) {
      had += claim.count;
      i += claim.count;
      continue;
    }
    if (room > 0) wanted.push_back(keys[i]);
    --room;
    ++i;
  }
  if (wanted.empty()) return had;
  const auto batch = std::make_shared<ReadBatch>(std::move(wanted), source);
  batch->fingerprint = fingerprint;  // of more keys, if some are left out
  batch->due =
      stages_ + std::min<uint64_t>(ahead_.size() + 1, kMostAhead) + kPatience;
  {
    const MutexLock lock(mutex_);
    reads_.push_back(batch);
  }
  changed_.NotifyAll();
  ahead_.push_back(batch);  // last: it will be waited for
  return had + batch->left;
}

void RowMover::Drop(const std::shared_ptr<ReadBatch>& batch) {
  const MutexLock lock(mutex_);
  dropped_.push_back(batch);
  const auto queued = std::find(reads_.begin(), reads_.end(), batch);
  if (queued != reads_.end()) reads_.erase(queued);
  changed_.NotifyAll();
}

void RowMover::EndStage(int64_t rows) {
  staged_rows_ = rows;
  ++stages_;
  std::deque<std::shared_ptr<ReadBatch>> kept;
  for (const std::shared_ptr<ReadBatch>& batch : ahead_) {
    const bool used_up = batch->left == 0;
    if (used_up || batch->due <= stages_) {
      Drop(batch);
    } else {
      kept.push_back(batch);
    }
  }
  ahead_ = std::move(kept);
}

Status RowMover::TakeError() {
  return Forked() ? ForkedStatus() : writer_.TakeError();
}

}  // namespace oneemb
