// The mover against a map: rows are taken, changed, given up and read ahead at
// random, on disks that are full for a while.
#include <algorithm>
#include <cstring>
#include <map>
#include <random>
#include <utility>

#include "test_mover.h"

namespace oneemb {
namespace {

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

// Any function of the keys in their order will do.
KeyFingerprint FingerprintOf(const std::vector<Key>& keys) {
  KeyFingerprint fingerprint;
  for (const Key key : keys) {
    fingerprint.words[0] = fingerprint.words[0] * 1000003 + HashKey(key);
    fingerprint.words[1] += HashKey({fingerprint.words[0], key.table});
  }
  return fingerprint;
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

}  // namespace
}  // namespace oneemb
