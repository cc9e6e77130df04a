// The contract of a Store, on a simulated disk.
#include "store/store.h"

#include <algorithm>

#include "setting.h"
#include "test_store.h"

namespace oneemb {
namespace {

TEST(AnEmptyStoreHasNoRows) {
  const auto store = OpenStore(SmallOptions(std::make_shared<SimEnv>()));
  CheckHolds(store.get(), {});
  CHECK_OK(store->Put({nullptr, 0}, nullptr));
  CHECK_OK(store->Fetch({nullptr, 0}, nullptr, nullptr));
  CHECK_OK(store->Erase({nullptr, 0}, nullptr));
  CHECK_OK(store->Compact());
  CheckHolds(store.get(), {});
}

void CheckWidth(StoreKind kind, int64_t width) {
  std::mt19937_64 random(static_cast<uint64_t>(width));
  const auto store =
      OpenStore(SmallOptions(std::make_shared<SimEnv>(), width, kind));
  Model model;
  for (int i = 0; i < 3; ++i) {
    const TestBatch batch = RandomBatch(&random, 20, width);
    CHECK_OK(store->Put(batch.span(), batch.rows.data()));
    PutInto(&model, batch);
  }
  CHECK_OK(store->Save("s", ""));
  CHECK_OK(store->Verify("s"));
  CheckHolds(store.get(), model);
}

TEST(RowsOfEveryWidthComeBack) {
  for (const StoreKind kind : kAllKinds) {
    for (const int64_t width :
         {4, 5, 8, 63, 100, 512, 1536, 2048, 4080, 4096, 5000, 16384, 65536}) {
      CheckWidth(kind, width);
    }
  }
}

TEST(TheLaterOfTwoRowsInABatchCounts) {
  const auto store = OpenStore(SmallOptions(std::make_shared<SimEnv>(), 4));
  const std::vector<Key> keys = {{1, 0}, {2, 0}, {1, 0}};
  const char rows[] = "aaaabbbbcccc";
  CHECK_OK(store->Put({keys.data(), 3}, rows));
  const std::vector<char> c(4, 'c');
  const std::vector<char> b(4, 'b');
  CheckHolds(store.get(), {{{1, 0}, c}, {{2, 0}, b}});
}

TEST(EraseSaysWhatItErased) {
  const auto store = OpenStore(SmallOptions(std::make_shared<SimEnv>(), 4));
  const std::vector<Key> keys = {{1, 0}, {2, 0}};
  CHECK_OK(store->Put({keys.data(), 2}, "aaaabbbb"));
  const std::vector<Key> some = {{2, 0}, {3, 0}, {2, 0}};
  uint8_t erased[3] = {9, 9, 9};
  CHECK_OK(store->Erase({some.data(), 3}, erased));
  CHECK_EQ(erased[0], 1);
  CHECK_EQ(erased[1], 0);
  CHECK_EQ(erased[2], 0);
  CheckHolds(store.get(), {{{1, 0}, std::vector<char>(4, 'a')}});
}

void CheckRefused(const StoreOptions& options, const std::string& word) {
  std::unique_ptr<Store> store;
  const Status status = Store::Open(options, &store);
  CHECK_EQ(status.kind(), StatusKind::kInvalidArgument);
  CHECK(status.message().find(word) != std::string::npos);
  CHECK(store == nullptr);
}

TEST(BadOptionsAreNamed) {
  const StoreOptions good = SmallOptions(std::make_shared<SimEnv>());
  StoreOptions bad = good;
  bad.path = "";
  CheckRefused(bad, "path");
  for (const int64_t width : {-1, 0, 3, 65537}) {
    bad = good;
    bad.row_bytes = width;
    CheckRefused(bad, "row_bytes: " + std::to_string(width));
  }
  bad = good;
  bad.ssd.block_bytes = 1024;
  CheckRefused(bad, "block_bytes: 1024");
  bad = good;
  bad.ssd.policy.utilisation = 1;
  CheckRefused(bad, "utilisation");
  bad = good;
  bad.ssd.write_bytes = 5000;
  CheckRefused(bad, "write_bytes");
  bad = good;
  bad.ssd.read_depth = 0;
  CheckRefused(bad, "read_depth");
}

TEST(AFolderOfSomethingElseIsNotTouched) {
  const auto env = std::make_shared<SimEnv>();
  CHECK_OK(env->MakeFolder("store"));
  CHECK_OK(env->MakeFolder("store/tmp"));
  std::unique_ptr<File> file;
  CHECK_OK(env->Open("store/tmp/thesis", OpenMode::kCreate, Caching::kCached,
                     &file));
  CheckRefused(SmallOptions(env), "not a store");
  CHECK_EQ(env->Files().size(), size_t{1});
}

TEST(AStoreOfALaterFormatIsRefused) {
  const auto env = std::make_shared<SimEnv>();
  OpenStore(SmallOptions(env)).reset();
  for (const size_t place : {size_t{8}, size_t{0}}) {
    std::vector<char> format = env->Content("store/FORMAT");
    format[place] = 2;
    env->SetContent("store/FORMAT", format);
    std::unique_ptr<Store> store;
    CHECK_EQ(Store::Open(SmallOptions(env), &store).kind(),
             StatusKind::kCorruption);
  }
}

TEST(OneOwnerAtATime) {
  const auto env = std::make_shared<SimEnv>();
  auto store = OpenStore(SmallOptions(env));
  std::unique_ptr<Store> second;
  const Status status = Store::Open(SmallOptions(env), &second);
  CHECK_EQ(status.kind(), StatusKind::kLocked);
  store.reset();
  CHECK_OK(Store::Open(SmallOptions(env), &second));
}

TEST(AStoreStartsEmptyAndKeepsSnapshots) {
  const auto env = std::make_shared<SimEnv>();
  std::mt19937_64 random(1);
  const TestBatch batch = RandomBatch(&random, 50, 100);
  Model model;
  PutInto(&model, batch);
  auto store = OpenStore(SmallOptions(env));
  CHECK_OK(store->Put(batch.span(), batch.rows.data()));
  CHECK_OK(store->Save("one", "words"));
  store.reset();
  store = OpenStore(SmallOptions(env));
  CheckHolds(store.get(), {});
  std::string user;
  CHECK_OK(store->Load("one", &user));
  CHECK_EQ(user, "words");
  CheckHolds(store.get(), model);
}

int64_t FilesIn(const SimEnv& env, const std::string& folder) {
  const std::vector<std::string> files = env.Files();
  return std::count_if(
      files.begin(), files.end(),
      [&](const std::string& path) { return path.rfind(folder, 0) == 0; });
}

TEST(AClosedStoreLeavesItsSnapshotsAlone) {
  for (const StoreKind kind : kAllKinds) {
    const auto env = std::make_shared<SimEnv>();
    std::mt19937_64 random(2);
    Model model;
    const TestBatch saved = RandomBatch(&random, 200, 100);
    PutInto(&model, saved);
    auto store = OpenStore(SmallOptions(env, 100, kind));
    CHECK_OK(store->Put(saved.span(), saved.rows.data()));
    CHECK_OK(store->Save("s", ""));
    const TestBatch lost = RandomBatch(&random, 200, 100);
    CHECK_OK(store->Put(lost.span(), lost.rows.data()));
    const int64_t kept = FilesIn(*env, "store/snap/");
    if (kind != StoreKind::kHost) CHECK(FilesIn(*env, "store/seg/") > 0);
    store.reset();
    CHECK_EQ(FilesIn(*env, "store/seg/"), 0);
    CHECK_EQ(FilesIn(*env, "store/snap/"), kept);
    store = OpenStore(SmallOptions(env, 100, kind));
    CHECK_OK(store->Load("s", nullptr));
    store.reset();
    CHECK_EQ(FilesIn(*env, "store/seg/"), 0);
    store = OpenStore(SmallOptions(env, 100, kind));
    CHECK_OK(store->Load("s", nullptr));
    CheckHolds(store.get(), model);
  }
}

TEST(BudgetOfTheIndexIsABound) {
  StoreOptions options = SmallOptions(std::make_shared<SimEnv>(), 4);
  options.ssd.memory_budget_bytes = int64_t{6} << 20;
  const auto store = OpenStore(options);
  std::mt19937_64 random(1);
  Model model;
  Status status;
  while (status.ok()) {
    TestBatch batch;
    for (int i = 0; i < 5000; ++i) {
      const Key key{random(), 0};
      batch.Add(key, MakeRow(key, 0, 4));
    }
    status = store->Put(batch.span(), batch.rows.data());
    if (status.ok()) PutInto(&model, batch);
    StoreStats stats;
    CHECK_OK(store->Stats(&stats));
    CHECK(stats.memory_bytes <= options.ssd.memory_budget_bytes);
  }
  CHECK_EQ(status.kind(), StatusKind::kNoSpace);
  CHECK(status.message().find("memory_budget_bytes") != std::string::npos);
  CHECK(model.size() > 10000);
  CHECK(Dump(store.get()) == model);
}

TEST(MemoryHasBuffersFromTheirFirstUseOn) {
  StoreOptions options = SmallOptions(std::make_shared<SimEnv>(), 4);
  options.ssd.segment_bytes = 40 * kBlockBytes;
  const auto store = OpenStore(options);
  const auto buffers = [&] {
    StoreStats stats;
    CHECK_OK(store->Stats(&stats));
    return stats.memory_bytes - stats.index_bytes;
  };
  CHECK_EQ(buffers(), 0);
  TestBatch batch;
  batch.Add({1, 0}, MakeRow({1, 0}, 0, 4));
  CHECK_OK(store->Put(batch.span(), batch.rows.data()));
  const int64_t writer = buffers();
  const int64_t slots = LayoutFor(4).SlotsIn(options.ssd.segment_bytes);
  CHECK(writer >= options.ssd.write_depth * options.ssd.write_bytes +
                      slots * int64_t{sizeof(uint64_t) + sizeof(uint16_t)});
  std::vector<char> row(4);
  uint8_t found = 0;
  CHECK_OK(store->Fetch(batch.span(), row.data(), &found));
  CHECK_EQ(found, 1);
  // Four reads of 32 KiB, and one that is tried again.
  CHECK_EQ(buffers() - writer, int64_t{5} * 32 << 10);
}

TEST(ABudgetBelowTheBuffersIsRefused) {
  StoreOptions options = SmallOptions(std::make_shared<SimEnv>(), 4);
  options.ssd.memory_budget_bytes = 100000;
  std::unique_ptr<Store> store;
  const Status status = Store::Open(options, &store);
  CHECK_EQ(status.kind(), StatusKind::kInvalidArgument);
  CHECK(status.message().find("buffers alone take") != std::string::npos);
}

// Random calls; after each the store is what the model is.
// Every segment is one frame, and has a third of the rows that fit: whatever is
// moved, there are as many.
TEST(CompactionEndsWhereNothingCanBePackedMoreDensely) {
  const auto env = std::make_shared<SimEnv>();
  StoreOptions options = SmallOptions(env, 4);
  options.ssd.segment_bytes = kBlockBytes;
  options.ssd.compaction = CompactionMode::kManual;
  const auto store = OpenStore(options);
  Model model;
  for (uint64_t id = 0; id < 180; id += 60) {
    TestBatch batch;
    for (uint64_t i = id; i < id + 60; ++i) {
      batch.Add({i, 0}, MakeRow({i, 0}, 1, 4));
    }
    CHECK_OK(store->Put(batch.span(), batch.rows.data()));
    PutInto(&model, batch);
  }
  env->CrashAtChange(env->changes() + 1000);  // an endless one fails
  CHECK_OK(store->Compact());
  CHECK(Dump(store.get()) == model);
}

void RunAgainstModel(StoreKind kind, uint64_t seed, int steps) {
  std::mt19937_64 random(seed);
  const auto env = std::make_shared<SimEnv>(seed);
  const int64_t width = 4 + static_cast<int64_t>(random() % 300);
  StoreOptions options = SmallOptions(env, width, kind);
  options.ssd.policy.utilisation =
      0.3 + 0.1 * static_cast<double>(random() % 6);
  auto store = OpenStore(options);
  Model model;
  std::map<std::string, Model> saved;
  for (int step = 0; step < steps; ++step) {
    const uint64_t choice = random() % 20;
    const std::string name = "s" + std::to_string(random() % 4);
    if (choice < 9) {
      const TestBatch batch =
          RandomBatch(&random, static_cast<int64_t>(random() % 80), width);
      CHECK_OK(store->Put(batch.span(), batch.rows.data()));
      PutInto(&model, batch);
    } else if (choice < 12) {
      TestBatch batch =
          RandomBatch(&random, static_cast<int64_t>(random() % 30), width);
      std::vector<uint8_t> erased(batch.keys.size());
      CHECK_OK(store->Erase(batch.span(), erased.data()));
      for (size_t i = 0; i < batch.keys.size(); ++i) {
        CHECK_EQ(erased[i], model.erase(batch.keys[i]));
      }
    } else if (choice < 14) {
      const Status status = store->Save(name, name);
      CHECK_EQ(status.kind(), saved.count(name) == 0
                                  ? StatusKind::kOk
                                  : StatusKind::kAlreadyExists);
      if (status.ok()) saved[name] = model;
    } else if (choice < 16) {
      std::string user;
      const Status status = store->Load(name, &user);
      CHECK_EQ(status.ok(), saved.count(name) != 0);
      if (status.ok()) model = saved[name];
    } else if (choice < 17) {
      CHECK_EQ(store->Delete(name).ok(), saved.erase(name) != 0);
    } else if (choice < 18) {
      CHECK_OK(store->Compact());
    } else if (choice < 19) {
      for (const auto& entry : saved) CHECK_OK(store->Verify(entry.first));
    } else {
      store.reset();
      store = OpenStore(options);
      model.clear();
    }
    CheckHolds(store.get(), model);
  }
  std::vector<std::string> names;
  CHECK_OK(store->List(&names));
  CHECK_EQ(names.size(), saved.size());
}

TEST(RandomCallsAgreeWithAMap) {
  const uint64_t first = Setting("ONEEMB_MODEL_SEED", 1);
  const uint64_t runs = Setting("ONEEMB_MODEL_RUNS", 40);
  for (const StoreKind kind : kAllKinds) {
    for (uint64_t seed = first; seed < first + runs; ++seed) {
      try {
        RunAgainstModel(kind, seed, 120);
      } catch (const check::Failure&) {
        std::cerr << "ONEEMB_MODEL_SEED=" << seed << '\n';
        throw;
      }
    }
  }
  std::cout << std::size(kAllKinds) * runs * 120 << " calls\n";
}

}  // namespace
}  // namespace oneemb
