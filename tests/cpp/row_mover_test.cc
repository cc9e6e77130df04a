// The mover against a map: rows are taken, changed, given up and read ahead at
// random, on disks that are full for a while.
#include "store/row_mover.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <iterator>
#include <map>
#include <random>
#include <thread>
#include <utility>

#include "check.h"
#include "test_store.h"

namespace oneemb {
namespace {

constexpr int64_t kRowBytes = 24;
constexpr int64_t kMost = 40;

// Memory that is known as its own, with room nearby every now and then.
class TestSource final : public BufferSource {
 public:
  char* Take(int64_t bytes) override {
    char* const data = HeapSource()->Take(bytes);
    const MutexLock lock(mutex_);
    buffers_[data] = bytes;
    return data;
  }
  void Return(char* data, int64_t bytes) override {
    {
      const MutexLock lock(mutex_);
      buffers_.erase(data);
    }
    HeapSource()->Return(data, bytes);
  }
  std::shared_ptr<const char> CopyNear(const char* data,
                                       int64_t bytes) override {
    CHECK(Has(data));
    if (++copies_ % 3 == 0) return nullptr;
    SourceBuffer near = TakeBuffer(this, bytes);
    std::memcpy(near.get(), data, static_cast<size_t>(bytes));
    return near;
  }
  // Buffers that were not returned.
  size_t count() {
    const MutexLock lock(mutex_);
    return buffers_.size();
  }
  bool Has(const char* row) {
    const MutexLock lock(mutex_);
    const auto after = buffers_.upper_bound(row);
    if (after == buffers_.begin()) return false;
    const auto [data, bytes] = *std::prev(after);
    return row < data + bytes;
  }

 private:
  Mutex mutex_;
  std::map<const char*, int64_t> buffers_ ONEEMB_GUARDED_BY(mutex_);
  std::atomic<int> copies_{0};
};

// Rows that are there only when somebody has waited for them.
class LateRows final : public Arrival {
 public:
  LateRows(std::vector<char> rows, char* to)
      : rows_(std::move(rows)), to_(to) {}
  Status Await() override {
    const MutexLock lock(mutex_);
    if (!arrived_) std::memcpy(to_, rows_.data(), rows_.size());
    arrived_ = true;
    return {};
  }

 private:
  const std::vector<char> rows_;
  char* const to_;
  Mutex mutex_;
  bool arrived_ ONEEMB_GUARDED_BY(mutex_) = false;
};

// Rows that never come, in the place of which there is something else.
class LostRows final : public Arrival {
 public:
  Status Await() override { return {StatusKind::kIoError, "lost"}; }
};

// Any function of the keys in their order will do.
KeyFingerprint FingerprintOf(const std::vector<Key>& keys) {
  KeyFingerprint fingerprint;
  for (const Key key : keys) {
    fingerprint.words[0] = fingerprint.words[0] * 1000003 + HashKey(key);
    fingerprint.words[1] += HashKey({fingerprint.words[0], key.table});
  }
  return fingerprint;
}

AlignedBuffer BufferOf(const std::vector<char>& rows,
                       BufferSource* source = HeapSource()) {
  AlignedBuffer buffer;
  CHECK_OK(buffer.Resize(static_cast<int64_t>(rows.size()), source));
  std::memcpy(buffer.data(), rows.data(), rows.size());
  return buffer;
}

Status WriteTo(RowMover* mover, const std::vector<Key>& keys,
               AlignedBuffer rows,
               std::shared_ptr<Arrival> arriving = nullptr) {
  ONEEMB_RETURN_IF_ERROR(mover->AwaitRoom(static_cast<int64_t>(keys.size())));
  mover->Write({keys.begin(), keys.end()}, std::move(rows),
               std::move(arriving));
  return {};
}

// A device tier that is a map, and its mover.
class Tier {
 public:
  Tier(std::shared_ptr<SimEnv> env, StoreKind kind, uint64_t seed)
      : env_(std::move(env)),
        store_(OpenStore(SmallOptions(env_, kRowBytes, kind))),
        mover_(store_, kMost),
        random_(seed) {}

  // Takes some keys that are not here; they must be as the model has them.
  // Those of the batch that was read ahead last, if they are all not here.
  void TakeSome() {
    BufferSource* const source = NextSource();
    const bool next = random_() % 2 == 0 && AreAbsent(ahead_);
    const std::vector<Key> keys = next ? ahead_ : Absent(10);
    const KeyFingerprint fingerprint = FingerprintOf(keys);
    const auto count = static_cast<int64_t>(keys.size());
    TakenRows taken;
    if (mover_.IsAhead(fingerprint, count, source)) {
      CHECK(mover_.TakeAhead(fingerprint, count, source, &taken));
      CHECK_EQ(taken.prefetched, count);
      ++whole_;
    } else {
      CHECK(!mover_.TakeAhead(fingerprint, count, source, &taken));
      CHECK_OK(mover_.Take(Span(keys), source, &taken));
    }
    CheckRows(keys, taken);
    for (const Key key : keys) here_[key] = false;
    prefetched_ += taken.prefetched;
    mover_.EndStage(static_cast<int64_t>(keys.size()));
  }

  void ChangeSome() {
    for (auto& [key, dirty] : here_) {
      if (random_() % 2 == 0) continue;
      dirty = true;
      model_[key] = MakeRow(key, random_(), kRowBytes);
    }
  }

  // Gives up some keys. Where the Store cannot write they stay.
  void EvictSome() {
    std::vector<Key> clean;
    TestBatch dirty;
    for (const auto& [key, changed] : here_) {
      if (random_() % 2 == 0) continue;
      if (changed) {
        dirty.Add(key, model_[key]);
      } else {
        clean.push_back(key);
      }
    }
    for (const Key key : clean) here_.erase(key);
    if (dirty.keys.empty()) return;
    AlignedBuffer rows = BufferOf(dirty.rows, NextSource());
    std::shared_ptr<Arrival> arriving;
    if (random_() % 2 == 0) {
      arriving = std::make_shared<LateRows>(dirty.rows, rows.data());
      std::memset(rows.data(), 0x5a, dirty.rows.size());
    }
    const Status status =
        WriteTo(&mover_, dirty.keys, std::move(rows), std::move(arriving));
    refused_ += status.ok() ? 0 : 1;
    if (!status.ok()) return;
    for (const Key key : dirty.keys) here_.erase(key);
  }

  void PrefetchSome() {
    ahead_ = Absent(1 + random_() % 12);
    const int64_t taken =
        mover_.Prefetch(Span(ahead_), NextSource(), FingerprintOf(ahead_));
    CHECK(taken <= static_cast<int64_t>(ahead_.size()));
  }

  void PeekSome() {
    const std::vector<Key> keys = Absent(8);
    TakenRows taken;
    CHECK_OK(mover_.Peek(Span(keys), Access::kEvaluate, NextSource(), &taken));
    CheckRows(keys, taken);
  }

  void Finish() {
    env_->SetCapacity(int64_t{1} << 40);
    TestBatch rest;
    for (const auto& [key, dirty] : here_) {
      if (dirty) rest.Add(key, model_[key]);
    }
    if (!rest.keys.empty()) {
      CHECK_OK(WriteTo(&mover_, rest.keys, BufferOf(rest.rows)));
    }
    CHECK_OK(mover_.Drain());
    std::vector<Key> keys;
    std::vector<char> rows;
    mover_.Waiting(&keys, &rows);
    CHECK(keys.empty());
    CHECK(Dump(store_.get()) == model_);
  }

  // With what waits to be written, the Store has all that is not here.
  void CheckWaiting() {
    std::vector<Key> keys;
    std::vector<char> rows;
    mover_.Waiting(&keys, &rows);
    for (size_t i = 0; i < keys.size(); ++i) {
      if (here_.count(keys[i]) == 0) CHECK(RowAt(rows, i) == model_[keys[i]]);
    }
  }

  SimEnv* env() { return env_.get(); }
  RowMover* mover() { return &mover_; }
  int64_t prefetched() const { return prefetched_; }
  int64_t refused() const { return refused_; }
  int64_t whole() const { return whole_; }

 private:
  static KeySpan Span(const std::vector<Key>& keys) {
    return {keys.data(), static_cast<int64_t>(keys.size())};
  }
  static std::vector<char> RowAt(const std::vector<char>& rows, size_t i) {
    const auto begin = rows.begin() + static_cast<int64_t>(i) * kRowBytes;
    return {begin, begin + kRowBytes};
  }

  void CheckRows(const std::vector<Key>& keys, const TakenRows& taken) const {
    for (size_t i = 0; i < keys.size(); ++i) {
      const auto known = model_.find(keys[i]);
      const bool is_known = known != model_.end();
      const char* const row = taken.rows()[i];
      CHECK_EQ(row, taken.list().rows[i]);
      CHECK_EQ(taken.list().found[i], is_known ? kRowFound : kRowAbsent);
      CHECK_EQ(row != nullptr, is_known);
      if (!is_known) continue;
      CHECK(source_->Has(row));
      CHECK(std::equal(known->second.begin(), known->second.end(), row));
    }
  }

  // Rows may lie in memory of one kind and be wanted in another: a table went
  // from one device to another.
  BufferSource* NextSource() {
    if (random_() % 16 == 0)
      source_ = source_ == &sources_[0] ? &sources_[1] : &sources_[0];
    return source_;
  }

  bool AreAbsent(const std::vector<Key>& keys) const {
    return !keys.empty() &&
           std::none_of(keys.begin(), keys.end(),
                        [&](Key key) { return here_.count(key) > 0; });
  }

  // Distinct keys that are not here.
  std::vector<Key> Absent(size_t most) {
    std::vector<Key> keys;
    for (size_t i = 0; i < most; ++i) {
      const Key key = RandomKey(&random_);
      const bool twice = std::find(keys.begin(), keys.end(), key) != keys.end();
      if (here_.count(key) == 0 && !twice) keys.push_back(key);
    }
    return keys;
  }

  TestSource sources_[2];
  TestSource* source_ = &sources_[0];
  const std::shared_ptr<SimEnv> env_;
  const std::shared_ptr<Store> store_;
  RowMover mover_;
  std::mt19937_64 random_;
  Model model_;
  std::map<Key, bool> here_;  // and whether it is dirty
  std::vector<Key> ahead_;    // what was read ahead last
  int64_t whole_ = 0;         // batches that were taken as they were read
  int64_t prefetched_ = 0;
  int64_t refused_ = 0;
};

TEST(GivesBackWhatItWasGiven) {
  for (const StoreKind kind : kAllKinds) {
    for (uint64_t seed = 0; seed < 8; ++seed) {
      Tier tier(std::make_shared<SimEnv>(), kind, seed);
      const bool disk_fills = kind == StoreKind::kSsd && seed % 2 == 1;
      for (int step = 0; step < 150; ++step) {
        if (disk_fills && step % 20 == 10) tier.env()->SetCapacity(0);
        if (disk_fills && step % 20 == 15) {
          tier.env()->SetCapacity(int64_t{1} << 40);
        }
        tier.TakeSome();
        tier.PrefetchSome();
        tier.ChangeSome();
        tier.EvictSome();
        tier.PeekSome();
        tier.CheckWaiting();
      }
      CHECK(tier.prefetched() > 100);
      CHECK(tier.whole() > 5);
      CHECK_EQ(tier.refused() > 0, disk_fills);
      CHECK_EQ(tier.mover()->TakeError().ok(), !disk_fills);
      CHECK_OK(tier.mover()->TakeError());
      tier.Finish();
    }
  }
}

// Keys 1, 2, … of table 0.
std::vector<Key> Keys(uint64_t first, uint64_t count) {
  std::vector<Key> keys;
  for (uint64_t i = 0; i < count; ++i) keys.push_back({first + i, 0});
  return keys;
}

class Bare {
 public:
  Bare()
      : env_(std::make_shared<SimEnv>()),
        store_(OpenStore(SmallOptions(env_, kRowBytes))),
        mover_(store_, kMost) {}

  void Write(Key key, const std::vector<char>& row) {
    CHECK_OK(WriteTo(&mover_, {key}, BufferOf(row)));
  }
  std::vector<char> Take(Key key) {
    TakenRows taken;
    CHECK_OK(mover_.Take({&key, 1}, HeapSource(), &taken));
    CHECK_EQ(taken.list().found[0], kRowFound);
    prefetched += taken.prefetched;
    const char* const row = taken.list().rows[0];
    return {row, row + kRowBytes};
  }
  int64_t Prefetch(const std::vector<Key>& keys) {
    return mover_.Prefetch({keys.data(), static_cast<int64_t>(keys.size())},
                           HeapSource());
  }
  void WriteFrom(Key key, const std::vector<char>& row, BufferSource* source) {
    CHECK_OK(WriteTo(&mover_, {key}, BufferOf(row, source)));
  }
  Status TakeInto(const std::vector<Key>& keys, TakenRows* taken) {
    return mover_.Take({keys.data(), static_cast<int64_t>(keys.size())},
                       HeapSource(), taken);
  }
  void PrefetchInto(const std::vector<Key>& keys, BufferSource* source) {
    mover_.Prefetch({keys.data(), static_cast<int64_t>(keys.size())}, source);
  }
  void TakeFrom(const std::vector<Key>& keys, BufferSource* source) {
    TakenRows taken;
    CHECK_OK(mover_.Take({keys.data(), static_cast<int64_t>(keys.size())},
                         source, &taken));
  }
  RowMover& mover() { return mover_; }
  SimEnv& env() { return *env_; }

  int64_t prefetched = 0;

 private:
  const std::shared_ptr<SimEnv> env_;
  const std::shared_ptr<Store> store_;
  RowMover mover_;
};

// Nobody takes them for rows that do not exist.
TEST(WhatCouldNotBeReadAheadIsReadAgain) {
  Bare bare;
  const std::vector<Key> keys{{1, 0}, {2, 0}};
  for (const Key key : keys) bare.Write(key, MakeRow(key, 0, kRowBytes));
  CHECK_OK(bare.mover().Drain());
  bare.env().Reset();
  bare.env().FailAtCall(0, Fault::kIoError, true);
  CHECK_EQ(bare.Prefetch(keys), int64_t{2});
  TakenRows taken;
  CHECK(!bare.TakeInto(keys, &taken).ok());
  for (const uint8_t found : taken.list().found) CHECK_EQ(found, kRowFailed);
  bare.env().Reset();
  for (const Key key : keys)
    CHECK(bare.Take(key) == MakeRow(key, 0, kRowBytes));
}

// Rows that a device has lost are neither written nor read.
TEST(WhatNeverArrivesIsAnError) {
  TestSource elsewhere;
  Bare bare;
  const Key key{7, 0};
  bare.Write(key, MakeRow(key, 0, kRowBytes));
  CHECK_OK(bare.mover().Drain());
  CHECK_OK(WriteTo(&bare.mover(), {key}, BufferOf(MakeRow(key, 1, kRowBytes)),
                   std::make_shared<LostRows>()));
  CHECK(!bare.mover().Drain().ok());
  CHECK(!bare.mover().TakeError().ok());
  // A row that is to be copied from where it waits is not either.
  const Key other{8, 0};
  bare.mover().Write(SourceVector<Key>{other},
                     BufferOf(MakeRow(other, 0, kRowBytes), &elsewhere));
  TakenRows taken;
  CHECK(!bare.TakeInto({other, key, {9, 0}}, &taken).ok());
  for (const uint8_t found : taken.list().found) CHECK_EQ(found, kRowFailed);
  for (const char* const row : taken.list().rows) CHECK(row == nullptr);
  CHECK_EQ(bare.Prefetch({key}), int64_t{1});
  CHECK(!bare.TakeInto({key}, &taken).ok());
  std::vector<Key> keys;
  std::vector<char> rows;
  bare.mover().Waiting(&keys, &rows);
  CHECK(keys == std::vector<Key>{other});
}

// A table went from one device to another, whose memory is another's.
TEST(WhatWasReadAheadElsewhereIsReadAgain) {
  TestSource elsewhere;
  Bare bare;
  const std::vector<Key> keys{{1, 0}, {2, 0}};
  for (const Key key : keys) bare.Write(key, MakeRow(key, 0, kRowBytes));
  CHECK_OK(bare.mover().Drain());
  bare.PrefetchInto(keys, &elsewhere);
  TakenRows taken;
  CHECK_OK(bare.TakeInto(keys, &taken));
  for (size_t i = 0; i < keys.size(); ++i) {
    const char* const row = taken.list().rows[i];
    CHECK(!elsewhere.Has(row));
    const std::vector<char> wanted = MakeRow(keys[i], 0, kRowBytes);
    CHECK(std::equal(wanted.begin(), wanted.end(), row));
  }
}

TEST(WhatCannotBeWrittenIsStillRead) {
  Bare bare;
  const Key key{7, 0};
  bare.Write(key, MakeRow(key, 0, kRowBytes));
  CHECK_OK(bare.mover().Drain());
  bare.env().SetCapacity(0);
  std::vector<char> new_row;
  uint64_t version = 0;
  do {  // until the space is used up that the Store had set aside
    new_row = MakeRow(key, ++version, kRowBytes);
    bare.Write(key, new_row);
    CHECK(version < 100);
  } while (bare.mover().Drain().ok());
  // Not read from the Store, which has an older row.
  CHECK_EQ(bare.Prefetch({key}), int64_t{1});
  CHECK(!bare.mover().AwaitRoom(1).ok());
  CHECK(!bare.mover().TakeError().ok());
  bare.env().SetCapacity(int64_t{1} << 40);
  CHECK_OK(bare.mover().Drain());
  CHECK(bare.Take(key) == new_row);
  CHECK_EQ(bare.prefetched, int64_t{1});
}

TEST(ReadsAheadWhatFits) {
  Bare bare;
  bare.mover().EndStage(30);
  CHECK_EQ(bare.Prefetch(Keys(1, 15)), kMost - 30);
  CHECK_EQ(bare.Prefetch(Keys(1, 15)), int64_t{10});  // it has these
  CHECK_EQ(bare.Prefetch(Keys(100, 1)), int64_t{0});
  // Nobody wants them: after a while there is room again.
  for (int i = 0; i < 12; ++i) bare.mover().EndStage(30);
  CHECK_EQ(bare.Prefetch(Keys(100, 15)), int64_t{10});
  bare.mover().EndStage(kMost);
  CHECK_EQ(bare.Prefetch(Keys(200, 15)), int64_t{0});
}

TEST(KeepsWhatIsReadFarAhead) {
  Bare bare;
  constexpr uint64_t kDepth = 9;
  for (uint64_t i = 0; i < 30; ++i) {
    bare.Write({i, 0}, MakeRow({i, 0}, i, kRowBytes));
  }
  CHECK_OK(bare.mover().Drain());
  for (uint64_t i = 0; i < kDepth; ++i) bare.Prefetch(Keys(i, 1));
  for (uint64_t i = 0; i < 30; ++i) {
    CHECK(bare.Take({i, 0}) == MakeRow({i, 0}, i, kRowBytes));
    bare.mover().EndStage(1);
    bare.Prefetch(Keys(i + kDepth, i % 2));  // every second batch lacks nothing
  }
  // What was read ahead far into the future is there when its turn comes.
  CHECK(bare.prefetched >= 15);
}

// The reader always has one more batch to read.
TEST(FreesWhatWasTakenWhileItReads) {
  TestSource source;
  Bare bare;
  size_t most = 0;
  bare.PrefetchInto(Keys(0, 2), &source);
  for (uint64_t i = 0; i < 2000; i += 2) {
    bare.PrefetchInto(Keys(i + 2, 2), &source);
    bare.TakeFrom(Keys(i, 2), &source);
    bare.mover().EndStage(2);
    most = std::max(most, source.count());
  }
  CHECK(most < 40);
}

// A row that waited when it was read ahead does not keep those beside it.
TEST(LetsGoOfWhatIsWritten) {
  TestSource written;
  Bare bare;
  const Key key{1, 0};
  bare.env().SetCapacity(0);
  while (bare.mover().Drain().ok()) {  // until its row cannot but wait
    bare.WriteFrom(key, MakeRow(key, 0, kRowBytes), &written);
  }
  bare.Prefetch({key});
  bare.Prefetch({{2, 0}});
  TakenRows second;  // by then the first one has been read
  CHECK_OK(bare.TakeInto({{2, 0}}, &second));
  bare.env().SetCapacity(int64_t{1} << 40);
  CHECK_OK(bare.mover().Drain());
  while (written.count() != 0) std::this_thread::yield();
  CHECK(bare.Take(key) == MakeRow(key, 0, kRowBytes));
  CHECK_EQ(bare.prefetched, int64_t{1});
}

TEST(ForgetsWhatNobodyTakes) {
  Bare bare;
  for (uint64_t i = 0; i < 200; ++i) {
    bare.Prefetch(Keys(i, 1));
    bare.mover().EndStage(1);
  }
  // Batches of the last 20 stages may wait for their turn still.
  CHECK(bare.Prefetch(Keys(1000, kMost)) >= kMost - 1 - 20);
}

}  // namespace
}  // namespace oneemb
