// Everything at once: fetch, put, erase, snapshot, iteration and compaction.
// Rows carry their key and version, so a wrong one names its origin.
//
// ONEEMB_CONCURRENCY_TIMES=20 goes on for longer.
#include <atomic>
#include <cstring>
#include <thread>

#include "setting.h"
#include "temp_folder.h"
#include "test_store.h"

namespace oneemb {
namespace {

constexpr int64_t kWidth = 320;
constexpr uint64_t kIds = 512;

struct Stamp {
  uint64_t id;
  uint64_t version;
};

void WriteRow(Key key, uint64_t version, char* row) {
  for (int64_t at = 0; at < kWidth; at += static_cast<int64_t>(sizeof(Stamp))) {
    const Stamp stamp{key.id, version};
    std::memcpy(row + at, &stamp, sizeof(stamp));
  }
}

// The version of a row that is whole and the key's, or -1.
int64_t ReadRow(Key key, const char* row) {
  Stamp first{};
  std::memcpy(&first, row, sizeof(first));
  for (int64_t at = 0; at < kWidth; at += static_cast<int64_t>(sizeof(Stamp))) {
    if (std::memcmp(row, row + at, sizeof(Stamp)) != 0) return -1;
  }
  return first.id == key.id ? static_cast<int64_t>(first.version) : -1;
}

struct Run {
  explicit Run(const StoreOptions& options) : store(OpenStore(options)) {
    for (uint64_t id = 0; id < kIds; ++id) keys.push_back({id, 1});
  }

  KeySpan all() const { return {keys.data(), static_cast<int64_t>(kIds)}; }
  void Expect(bool condition, const char* what) {
    if (!condition && !failed.exchange(true)) std::cerr << what << '\n';
  }

  const std::unique_ptr<Store> store;
  std::vector<Key> keys;
  std::atomic<uint64_t> put_version{0};
  std::atomic<bool> done{false};
  std::atomic<bool> failed{false};
};

// Puts versions 1, 2, … of all rows, each as one batch.
void PutVersions(Run* run, uint64_t versions) {
  std::vector<char> rows(kIds * kWidth);
  for (uint64_t version = 1; version <= versions; ++version) {
    for (size_t i = 0; i < kIds; ++i) {
      WriteRow(run->keys[i], version, rows.data() + i * kWidth);
    }
    run->Expect(run->store->Put(run->all(), rows.data()).ok(), "put failed");
    run->put_version = version;
  }
  run->done = true;
}

// A batch is seen whole, and never an older one than was put before the fetch.
void FetchAll(Run* run) {
  std::vector<char> rows(kIds * kWidth);
  std::vector<uint8_t> found(kIds);
  while (!run->done) {
    const auto least = static_cast<int64_t>(run->put_version.load());
    run->Expect(run->store->Fetch(run->all(), rows.data(), found.data()).ok(),
                "fetch failed");
    const int64_t version =
        found[0] == kRowFound ? ReadRow(run->keys[0], rows.data()) : int64_t{0};
    run->Expect(version >= least, "an old version was fetched");
    for (size_t i = 0; i < kIds && version > 0; ++i) {
      run->Expect(
          found[i] == kRowFound &&
              ReadRow(run->keys[i], rows.data() + i * kWidth) == version,
          "half a batch was fetched");
    }
  }
}

// Rows of another table come and go.
void PutAndErase(Run* run) {
  const std::vector<Key> keys = {{1, 2}, {2, 2}, {3, 2}};
  const std::vector<char> rows(3 * kWidth, 'e');
  std::vector<char> out(3 * kWidth);
  uint8_t flags[3];
  while (!run->done) {
    run->Expect(run->store->Put({keys.data(), 3}, rows.data()).ok(), "put");
    run->Expect(run->store->Fetch({keys.data(), 3}, out.data(), flags).ok() &&
                    flags[2] == kRowFound && out == rows,
                "own rows were lost");
    run->Expect(run->store->Erase({keys.data(), 3}, flags).ok() &&
                    flags[0] == 1 && flags[2] == 1,
                "own rows were not erased");
  }
}

// All rows of an iteration are of one version.
void CheckOneVersion(Run* run, RowSource* source) {
  RowBatch batch;
  int64_t version = -2;
  for (;;) {
    run->Expect(source->Next(&batch).ok() && batch.bad.empty(), "iteration");
    if (batch.empty()) return;
    for (size_t i = 0; i < batch.keys.size(); ++i) {
      if (batch.keys[i].table != 1) continue;
      const int64_t read =
          ReadRow(batch.keys[i], batch.rows.data() + i * kWidth);
      if (version == -2) version = read;
      run->Expect(read == version && read > 0, "versions are mixed");
    }
  }
}

void SaveAndCheck(Run* run) {
  for (int i = 0; !run->done; ++i) {
    const std::string name = "s" + std::to_string(i);
    run->Expect(run->store->Save(name, "").ok(), "save failed");
    run->Expect(run->store->Verify(name).ok(), "a snapshot is bad");
    std::unique_ptr<RowSource> rows;
    run->Expect(run->store->Iterate(&rows).ok(), "iterate failed");
    if (run->store->options().kind != StoreKind::kHost) {
      CheckOneVersion(run, rows.get());
    }
    run->Expect(run->store->Delete(name).ok(), "delete failed");
    StoreStats stats;
    run->Expect(run->store->Stats(&stats).ok(), "stats failed");
    run->Expect(run->store->Compact().ok(), "compaction failed");
  }
}

void RunAll(const StoreOptions& options, uint64_t versions) {
  Run run(options);
  std::vector<std::thread> threads;
  threads.emplace_back([&] { PutVersions(&run, versions); });
  threads.emplace_back([&] { FetchAll(&run); });
  threads.emplace_back([&] { FetchAll(&run); });
  threads.emplace_back([&] { PutAndErase(&run); });
  threads.emplace_back([&] { SaveAndCheck(&run); });
  for (std::thread& thread : threads) thread.join();
  CHECK(!run.failed);
  StoreStats stats;
  CHECK_OK(run.store->Stats(&stats));
  CHECK_EQ(stats.rows, static_cast<int64_t>(kIds));
  if (options.kind == StoreKind::kSsd) CHECK(stats.compactions > 0);
}

// How much longer than usual.
uint64_t Times() { return Setting("ONEEMB_CONCURRENCY_TIMES", 1); }

StoreOptions Options(StoreKind kind, std::shared_ptr<Env> env) {
  StoreOptions options = SmallOptions(std::move(env), kWidth, kind);
  options.host_budget_bytes = int64_t{1} << 20;
  options.ssd.segment_bytes = int64_t{32} << 10;
  options.ssd.compaction = CompactionMode::kBackground;
  return options;
}

TEST(EverythingAtOnceOnASimulatedDisk) {
  for (const StoreKind kind : kAllKinds) {
    RunAll(Options(kind, std::make_shared<SimEnv>()), 60 * Times());
  }
}

// Many puts at the edge of the budget, and many fetches: each counts on memory
// that the others want too.
TEST(TheBudgetIsABoundForAllAtOnce) {
  StoreOptions options = SmallOptions(std::make_shared<SimEnv>(), 4);
  options.ssd.memory_budget_bytes = int64_t{4} << 20;
  options.ssd.readers = 2;
  const auto store = OpenStore(options);
  std::vector<std::thread> threads;
  std::atomic<bool> failed{false};
  for (uint64_t t = 0; t < 6; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(t);
      std::vector<Key> keys(4000);
      std::vector<char> rows(keys.size() * 4, 'r');
      std::vector<uint8_t> found(keys.size());
      Status status;
      while (status.ok()) {
        for (Key& key : keys) key = {random(), 0};
        const KeySpan span{keys.data(), static_cast<int64_t>(keys.size())};
        status = store->Put(span, rows.data());
        if (!store->Fetch(span, rows.data(), found.data()).ok()) failed = true;
      }
      if (status.kind() != StatusKind::kNoSpace) failed = true;
    });
  }
  for (std::thread& thread : threads) thread.join();
  StoreStats stats;
  CHECK_OK(store->Stats(&stats));
  CHECK(!failed);
  CHECK(stats.rows > 10000);
  CHECK(stats.memory_bytes <= options.ssd.memory_budget_bytes);
}

TEST(EverythingAtOnceOnARealDisk) {
  for (const Engine engine : {Engine::kThreads, Engine::kAuto}) {
    const TempFolder folder;
    std::shared_ptr<Env> env;
    CHECK_OK(NewPosixEnv(engine, &env));
    StoreOptions options = Options(StoreKind::kSsd, env);
    options.path = folder.path() + "/s";
    RunAll(options, 40 * Times());
  }
}

}  // namespace
}  // namespace oneemb
