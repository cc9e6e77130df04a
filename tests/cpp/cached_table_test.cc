// Kernels and Store together, without Python: a cached table gives the bits of
// one that has all rows in device memory, and a stale one is left alone.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <map>
#include <random>
#include <set>
#include <thread>
#include <utility>

#include "check.h"
#include "cpu/tier.h"
#include "test_cached.h"
#include "threads.h"
#include "tier/cached_ops.h"

namespace oneemb {
namespace {

constexpr int64_t kDim = 5;
constexpr uint64_t kIds = 90;

// Every bit of an empty index is 0.
bool IsEmpty(const std::vector<Bucket>& buckets) {
  const std::vector<char> zeros(buckets.size() * sizeof(Bucket));
  return std::memcmp(zeros.data(), buckets.data(), zeros.size()) == 0;
}

TEST(ErasingLeavesNoTrace) {
  std::mt19937_64 random(5);
  for (const int64_t capacity : {1, 4, 7, 100}) {
    std::vector<Bucket> buckets(static_cast<size_t>(NumBuckets(capacity)));
    const IndexView index{buckets.data(), NumBuckets(capacity)};
    std::map<Key, std::pair<int64_t, int32_t>> model;
    for (int i = 0; i < 4000; ++i) {
      const Key key{random() % 150, static_cast<uint16_t>(random() % 2)};
      const auto found = model.find(key);
      if (found != model.end()) {
        CHECK(EntryKey(index, found->second.first) == key);
        EraseEntry(index, found->second.first, HashKey(key));
        model.erase(found);
      } else if (static_cast<int64_t>(model.size()) < capacity) {
        const int64_t entry = InsertEntry(index, key, HashKey(key), i);
        CHECK(entry >= 0);
        model[key] = {entry, i};
      }
      for (const auto& [there, place] : model) {
        CHECK_EQ(FindSlot(index, there, HashKey(there)), place.second);
      }
      const Key absent{1000 + random() % 50, 0};
      CHECK_EQ(FindSlot(index, absent, HashKey(absent)), kSlotMissing);
    }
    for (const auto& [key, place] : model) {
      EraseEntry(index, place.first, HashKey(key));
    }
    CHECK(IsEmpty(buckets));
  }
}

// A device tier with random keys, clocks and states.
class RandomTier {
 public:
  RandomTier(int64_t capacity, uint32_t now, std::mt19937_64* random)
      : buckets_(static_cast<size_t>(NumBuckets(capacity))),
        clock_(static_cast<size_t>(capacity)),
        residency_(static_cast<size_t>(capacity)) {
    view_.index = {buckets_.data(), NumBuckets(capacity)};
    view_.capacity = capacity;
    view_.clock = clock_.data();
    view_.counters = counters_;
    view_.layout_version = &layout_version_;
    view_.residency = residency_.data();
    counters_[kSlotsUsed] = static_cast<uint64_t>(capacity);
    const uint32_t ages[] = {0, 1, 2, 70000, 80000};
    for (int64_t slot = 0; slot < capacity; ++slot) {
      const auto state = static_cast<SlotState>(1 + (*random)() % 3);
      AdmitKey(view_, {(*random)(), static_cast<uint16_t>((*random)() % 3)},
               static_cast<int32_t>(slot), state, now - ages[(*random)() % 5]);
    }
  }

  const TableView& view() const { return view_; }

  // All slots that may be evicted, in the order in which they should be.
  std::vector<int32_t> InOrder(uint32_t now, Victims which) const {
    std::vector<std::pair<uint32_t, int32_t>> slots;
    for (int32_t slot = 0; slot < view_.capacity; ++slot) {
      const uint32_t age = now - view_.clock[slot];
      const bool dirty = view_.residency[slot].state == kSlotDirty;
      if (age == 0 || (which == Victims::kClean && dirty)) continue;
      slots.emplace_back(~age, slot);
    }
    std::sort(slots.begin(), slots.end());
    std::vector<int32_t> order;
    for (const auto& [age, slot] : slots) order.push_back(slot);
    return order;
  }

  // A batch that wants some of the slots, and room for others.
  void NextBatch(uint32_t now, std::mt19937_64* random) {
    for (int i = 0; i < 9; ++i) {
      view_.clock[(*random)() % static_cast<uint64_t>(view_.capacity)] = now;
    }
    const auto count = static_cast<int64_t>((*random)() % 40);
    const std::vector<int32_t> wanted =
        ChooseVictims(view_, now, count, Victims::kAny);
    const std::vector<int32_t> victims =
        TakeVictims(view_, now, count, &queue_);
    CHECK(victims == wanted);
    for (const int32_t slot : victims) EvictSlot(view_, slot);
    for (const int32_t slot : victims) {
      AdmitKey(view_, {(*random)(), 0}, slot, kSlotClean, now);
    }
    if ((*random)() % 20 == 0) queue_.clear();
  }

  void EvictAll() {
    for (int32_t slot = 0; slot < view_.capacity; ++slot) {
      EvictSlot(view_, slot);
    }
    CHECK(IsEmpty(buckets_));
    CHECK_EQ(layout_version_, uint64_t{0});
  }

 private:
  std::vector<Bucket> buckets_;
  std::vector<uint32_t> clock_;
  std::vector<SlotResidency> residency_;
  uint64_t counters_[kNumCounters] = {};
  uint64_t layout_version_ = 0;
  TableView view_{};
  std::vector<TierVictim> queue_;
};

TEST(VictimsAreTheLongestUnused) {
  std::mt19937_64 random(7);
  for (const uint32_t now : {3U, 100000U}) {
    RandomTier tier(300, now, &random);
    for (const Victims which : {Victims::kAny, Victims::kClean}) {
      const std::vector<int32_t> order = tier.InOrder(now, which);
      for (const size_t count : {size_t{0}, size_t{1}, size_t{50}, size_t{180},
                                 size_t{239}, size_t{300}}) {
        const size_t most = std::min(count, order.size());
        std::vector<int32_t> wanted(order.begin(),
                                    order.begin() + static_cast<int64_t>(most));
        std::sort(wanted.begin(), wanted.end());
        CHECK(ChooseVictims(tier.view(), now, static_cast<int64_t>(count),
                            which) == wanted);
      }
    }
    tier.EvictAll();
  }
}

TEST(TheQueueHasTheSameVictims) {
  std::mt19937_64 random(3);
  for (const int64_t capacity : {60, 300, 5000}) {
    RandomTier tier(capacity, 100000, &random);
    for (uint32_t now = 100001; now < 100400; ++now) {
      tier.NextBatch(now, &random);
    }
  }
}

Batch RandomBatch(std::mt19937_64* random, int64_t n) {
  std::vector<uint64_t> ids;
  for (int64_t i = 0; i < n; ++i) {
    const uint64_t id = (*random)() % ((*random)() % 2 == 0 ? 9 : kIds);
    ids.push_back(id == 0 ? ~uint64_t{0} : id);
  }
  Batch batch(ids);
  std::normal_distribution<float> normal;
  batch.gradients.resize(static_cast<size_t>(n * kDim));
  for (float& g : batch.gradients) g = normal(*random);
  return batch;
}

// Bits: a NaN equals itself.
template <class T>
bool SameBits(const std::vector<T>& a, const std::vector<T>& b) {
  return a.size() == b.size() &&
         (a.empty() ||
          std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

Batch AllIds() {
  std::vector<uint64_t> ids = {~uint64_t{0}};
  for (uint64_t id = 0; id < kIds; ++id) ids.push_back(id);
  return Batch(ids);
}

// Whether both tables have the same rows, state included.
void CheckSameRows(Parallel* parallel, TestTable* plain, TestCached* cached) {
  const Batch every = AllIds();
  const int64_t words = plain->View().row_words;
  const auto size = static_cast<size_t>(every.size());
  std::vector<uint32_t> wanted(size * static_cast<size_t>(words));
  std::vector<uint32_t> found(wanted.size());
  std::vector<int32_t> slots(size);
  std::vector<int32_t> cached_slots(size);
  ReadRows(parallel, plain->View(), plain->rules(), every.View(), wanted.data(),
           slots.data());
  CHECK(ReadCachedRows(parallel, cached->Now(), every.View(), found.data(),
                       cached_slots.data()));
  CHECK(wanted == found);
  for (size_t i = 0; i < size; ++i)
    CHECK_EQ(slots[i] >= 0, cached_slots[i] >= 0);
  CHECK_EQ(plain->counter(kRows), cached->counter(kRows));
}

// One run on both tables, batch by batch; returns how many batches were not
// trained since rows of them could not be had.
int64_t TrainBoth(Parallel* parallel, TestTable* plain, TestCached* cached,
                  const std::vector<Batch>& batches, size_t depth,
                  SimEnv* full_at_times) {
  int64_t skipped = 0;
  for (size_t t = 0; t < batches.size(); ++t) {
    if (full_at_times != nullptr && t % 30 == 10) full_at_times->SetCapacity(0);
    if (full_at_times != nullptr && t % 30 == 20) {
      full_at_times->SetCapacity(int64_t{1} << 40);
    }
    const Batch& batch = batches[t];
    CHECK(Stage(parallel, cached->Next(), batch.View()));
    if (depth > 0 && t + depth < batches.size()) {
      CHECK(Prefetch(parallel, cached->Now(), batches[t + depth].View()));
    }
    const Seen wanted = plain->Read(parallel, batch);
    const Seen seen = cached->Read(parallel, batch);
    const uint32_t before = cached->generation();
    cached->Train(parallel, batch, seen);
    if (cached->generation() == before) {
      ++skipped;
    } else {
      CHECK(SameBits(wanted.activations, seen.activations));
      plain->Train(parallel, {&batch}, {&wanted});
    }
    if (t % 40 == 39) cached->FlushAll(parallel);
  }
  return skipped;
}

std::vector<Batch> RandomBatches(uint64_t seed, int64_t most) {
  std::mt19937_64 random(seed);
  std::vector<Batch> batches;
  for (int i = 0; i < 150; ++i) {
    const auto size = static_cast<int64_t>(random() % 13);
    batches.push_back(RandomBatch(&random, std::min(size, most)));
  }
  return batches;
}

TEST(TrainsAsInDeviceMemory) {
  for (const StoreKind kind : kAllKinds) {
    for (const int64_t slots : {12, 13, 24, 120}) {
      for (const size_t depth : {0, 1, 2, 4}) {
        TestParallel parallel(slots % 2 + 1);
        TestTable plain(kDim, 200, OptimizerKind::kAdagrad);
        TestCached cached(kDim, slots, OptimizerKind::kAdagrad, "trains",
                          std::make_shared<SimEnv>(), kind);
        const std::vector<Batch> batches =
            RandomBatches(static_cast<uint64_t>(slots), slots);
        CHECK_EQ(TrainBoth(&parallel, &plain, &cached, batches, depth, nullptr),
                 int64_t{0});
        CHECK_OK(cached.Now().store->TakeError());
        CHECK_EQ(cached.counter(kUnstaged), uint64_t{0});
        CHECK_EQ(cached.counter(kStale), uint64_t{0});
        CHECK_EQ(plain.counter(kHits), cached.counter(kHits));
        CheckSameRows(&parallel, &plain, &cached);
        const TierFigures& figures = cached.Now().store->figures();
        CHECK_EQ(figures.prefetched > 0, depth > 0);
        CHECK(figures.prefetched <= figures.misses);
      }
    }
  }
}

TEST(AFullDiskLosesNothing) {
  for (const size_t depth : {0, 2}) {
    const auto env = std::make_shared<SimEnv>();
    TestParallel parallel(2);
    TestTable plain(kDim, 200, OptimizerKind::kAdagrad);
    TestCached cached(kDim, 24, OptimizerKind::kAdagrad, "full", env);
    const int64_t skipped = TrainBoth(&parallel, &plain, &cached,
                                      RandomBatches(3, 12), depth, env.get());
    CHECK(skipped > 0);
    CHECK(skipped < 100);
    CHECK(!cached.Now().store->TakeError().ok());
    CheckSameRows(&parallel, &plain, &cached);
  }
}

TEST(AStaleTableIsLeftAlone) {
  TestParallel parallel(1);
  TestCached cached(kDim, 16, OptimizerKind::kSgd, "stale",
                    std::make_shared<SimEnv>());
  std::mt19937_64 random(1);
  const Batch batch = RandomBatch(&random, 10);
  const Batch other = RandomBatch(&random, 10);
  uint32_t old = cached.generation();
  CachedTable kept = cached.Now();
  kept.generation = &old;
  CHECK(Stage(&parallel, cached.Next(), batch.View()));
  const Seen seen = cached.Read(&parallel, batch);
  cached.Train(&parallel, batch, seen);
  const std::vector<uint32_t> rows = cached.table().rows();
  CHECK(Stage(&parallel, kept, other.View()));
  CHECK_EQ(old, 0U);
  CHECK(cached.table().rows() == rows);
  CHECK_EQ(cached.counter(kStale), uint64_t{1});
  for (const float value : cached.ReadAs(&parallel, batch, kept).activations) {
    CHECK(value != value);
  }
  CHECK_EQ(cached.Now().store->figures().stale.load(), int64_t{1});
  const uint64_t hits = cached.counter(kHits) + cached.counter(kMisses);
  CHECK_EQ(hits, uint64_t{10});
}

// Rows of one width that are there in a Store.
int64_t RowsOf(Store* store) {
  int64_t size = 0;
  CHECK_OK(store->Size(&size));
  return size;
}

TEST(ARetiredStoreLetsGoWhoeverHasItsTable) {
  const auto env = std::make_shared<SimEnv>();
  TestParallel parallel(1);
  std::mt19937_64 random(1);
  const Batch batch = RandomBatch(&random, 10);
  TestCached cached(kDim, 16, OptimizerKind::kSgd, "retired", env);
  CHECK(Stage(&parallel, cached.Next(), batch.View()));
  const CachedTable kept = cached.Now();
  const StoreOptions options = kept.store->store()->options();
  DetachStore("retired", kept.nonce);
  CHECK(StoreOf("retired") == nullptr);
  // Its folder is free, although the table is still here.
  CHECK_EQ(RowsOf(OpenStore(options).get()), int64_t{0});
  CHECK(Stage(&parallel, kept, batch.View()));
  CHECK(Prefetch(&parallel, kept, batch.View()));
  CHECK(!WriteDown(&parallel, kept));
  CHECK_EQ(cached.counter(kStale), uint64_t{1});
  std::vector<Key> keys;
  std::vector<char> rows;
  kept.store->Settle(&keys, &rows);
  CHECK(keys.empty() && rows.empty());
  CHECK_OK(kept.store->TakeError());
}

// Trains until its Store is another's or nobody's.
class Trainer {
 public:
  explicit Trainer(TestCached* cached)
      : thread_([this, cached] { Train(cached); }) {}
  ~Trainer() { thread_.join(); }
  Trainer(const Trainer&) = delete;
  Trainer& operator=(const Trainer&) = delete;

  void AwaitWork() const {
    while (steps_ < 5) std::this_thread::yield();
  }

 private:
  void Train(TestCached* cached) {
    TestParallel parallel(1);
    std::mt19937_64 random(7);
    while (cached->counter(kStale) == 0 && steps_ < 50'000) {
      const Batch batch = RandomBatch(&random, 10);
      CHECK(Stage(&parallel, cached->Next(), batch.View()));
      CHECK(
          Prefetch(&parallel, cached->Now(), RandomBatch(&random, 10).View()));
      cached->Train(&parallel, batch, cached->Read(&parallel, batch));
      ++steps_;
    }
    CHECK(cached->counter(kStale) > 0);
  }

  std::atomic<int64_t> steps_{0};
  std::thread thread_;
};

TEST(RetiresBesideATableInTraining) {
  for (int i = 0; i < 20; ++i) {
    const auto env = std::make_shared<SimEnv>();
    TestCached cached(kDim, 16, OptimizerKind::kAdagrad, "busy", env);
    const StoreOptions options = StoreOf("busy")->store()->options();
    const uint64_t nonce = StoreOf("busy")->nonce();
    const Trainer trainer(&cached);
    trainer.AwaitWork();
    DetachStore("busy", nonce);
    CHECK(RowsOf(OpenStore(options).get()) == 0);
  }
}

TEST(IsReplacedBesideATableInTraining) {
  for (int i = 0; i < 20; ++i) {
    const auto env = std::make_shared<SimEnv>();
    TestCached cached(kDim, 16, OptimizerKind::kAdagrad, "busy", env);
    const std::shared_ptr<TableStore> store = StoreOf("busy");
    const auto row_bytes = static_cast<size_t>(store->row_bytes());
    const Key key{uint64_t{1} << 40, 0};  // of no batch
    const std::vector<char> row(row_bytes, 'x');
    CHECK_OK(store->store()->Put({&key, 1}, row.data()));
    CHECK_OK(store->store()->Save("one", ""));
    const std::string folder = "store/snap/one";
    const Trainer trainer(&cached);
    trainer.AwaitWork();
    CHECK_OK(store->Replace(folder));
    // Nothing that was on its way has got in.
    const Model rows = Dump(store->store());
    CHECK_EQ(rows.size(), size_t{1});
    CHECK(rows.at(key) == row);
  }
}

// Operation kinds in words of one letter.
History Of(const std::string& operations, int64_t run) {
  History history;
  for (const char c : operations) {
    history.Advance(c == 's'   ? Operation::kStage
                    : c == 'u' ? Operation::kUpdate
                    : c == 'w' ? Operation::kWrite
                               : Operation::kFlush,
                    static_cast<uint64_t>(c), run);
  }
  return history;
}

TEST(HistoryJudges) {
  const auto judge = [](const std::string& later, int64_t run,
                        uint64_t digest) {
    return Of("s" + later, 1).Judge(0, Operation::kStage, digest, run);
  };
  for (const char* safe : {"", "s", "ssf"}) {
    CHECK_EQ(judge(safe, 9, 's'), Standing::kRecomputed);
    CHECK_EQ(judge(safe, 9, 'x'), Standing::kStale);
  }
  for (const char* changed : {"u", "su", "uu"}) {
    CHECK_EQ(judge(changed, 1, 's'), Standing::kRecomputed);
    CHECK_EQ(judge(changed, 9, 's'), Standing::kStale);
  }
  for (const char* moved : {"us", "uf", "w", "sw"}) {
    CHECK_EQ(judge(moved, 1, 's'), Standing::kStale);
  }
  CHECK_EQ(Of("uu", 1).Judge(0, Operation::kUpdate, 'u', 1), Standing::kStale);
  CHECK_EQ(Of("su", 1).Judge(2, Operation::kUpdate, 0, 5), Standing::kCurrent);
  CHECK_EQ(Of("su", 1).Judge(3, Operation::kStage, 0, 5), Standing::kStale);
  CHECK(Of("su", 1).MayRead(2, 5));
  CHECK(Of("su", 1).MayRead(0, 1));
  CHECK(!Of("su", 1).MayRead(1, 5));
  CHECK(!Of("su", 1).MayRead(3, 1));
  CHECK(!Of(std::string(300, 's'), 1).MayRead(10, 1));
  CHECK_EQ(Of(std::string(300, 's'), 1).Judge(10, Operation::kStage, 's', 1),
           Standing::kStale);
}

}  // namespace
}  // namespace oneemb
