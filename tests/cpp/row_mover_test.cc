// The mover, case by case: what cannot be read, written or kept.
#include <algorithm>
#include <thread>

#include "test_mover.h"

namespace oneemb {
namespace {

// Rows that never come, in the place of which there is something else.
class LostRows final : public Arrival {
 public:
  Status Await() override { return {StatusKind::kIoError, "lost"}; }
};

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
