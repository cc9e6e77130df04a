// A cache in front of the SSD: what one call does while another one reads, and
// what is left when a batch finds no room.
#include <thread>

#include "gate_env.h"
#include "store/hash_inverse.h"
#include "store/host_cache.h"
#include "test_store.h"

namespace oneemb {
namespace {

constexpr int64_t kWidth = 100;

StoreOptions Options(std::shared_ptr<Env> env) {
  StoreOptions options =
      SmallOptions(std::move(env), kWidth, StoreKind::kCachedSsd);
  options.ssd.compaction = CompactionMode::kManual;
  options.host_budget_bytes = (int64_t{4} << 10) + 40 * kWidth;
  return options;
}

StoreStats StatsOf(const Store& store) {
  StoreStats stats;
  CHECK_OK(store.Stats(&stats));
  return stats;
}

// Ids first ... first + count - 1 of table 0, in one version.
TestBatch Range(uint64_t first, uint64_t count, uint64_t version) {
  TestBatch batch;
  for (uint64_t id = first; id < first + count; ++id) {
    batch.Add({id, 0}, MakeRow({id, 0}, version, kWidth));
  }
  return batch;
}

void Put(Store* store, Model* model, const TestBatch& batch) {
  CHECK_OK(store->Put(batch.span(), batch.rows.data()));
  PutInto(model, batch);
}

// Far more rows than the cache holds: ids 0 to 49.
Model Fill(Store* store) {
  Model model;
  for (uint64_t first = 0; first < 50; first += 10) {
    Put(store, &model, Range(first, 10, 1));
  }
  // These are in the cache now, and the others are not.
  Put(store, &model, Range(50, 9, 1));
  return model;
}

enum class Meanwhile { kPut, kPutAndEvict, kErase, kLoad, kCompact };

// Takes a step that must neither wait for a fetch nor be undone by it.
void Step(Meanwhile what, Store* store, Model* model, const Model& saved) {
  const TestBatch newer = Range(0, 10, 2);
  std::vector<uint8_t> erased(newer.keys.size());
  switch (what) {
    case Meanwhile::kPut:
      Put(store, model, newer);
      break;
    case Meanwhile::kPutAndEvict:
      Put(store, model, newer);
      for (uint64_t first = 10; first < 50; first += 10) {
        Put(store, model, Range(first, 10, 2));
      }
      break;
    case Meanwhile::kErase:
      CHECK_OK(store->Erase(newer.span(), erased.data()));
      for (const Key key : newer.keys) model->erase(key);
      break;
    case Meanwhile::kLoad:
      CHECK_OK(store->Load("s", nullptr));
      *model = saved;
      break;
    case Meanwhile::kCompact:
      CHECK_OK(store->Compact());
      break;
  }
  CHECK(StatsOf(*store).rows == static_cast<int64_t>(model->size()));
}

void RunMeanwhile(Meanwhile what, Access access) {
  const auto gate = std::make_shared<Gate>();
  const auto store = OpenStore(
      Options(std::make_shared<GateEnv>(std::make_shared<SimEnv>(), gate)));
  Model model = Fill(store.get());
  const Model saved = model;
  CHECK_OK(store->Save("s", ""));
  if (what == Meanwhile::kCompact) {
    Put(store.get(), &model, Range(20, 20, 3));
  }
  const TestBatch wanted = Range(0, 10, 1);
  std::vector<char> rows(wanted.rows.size());
  std::vector<uint8_t> found(wanted.keys.size());
  Status status;
  gate->Close();
  std::thread fetch([&] {
    status = store->Fetch(wanted.span(), rows.data(), found.data(), access);
  });
  gate->WaitForReader();
  Step(what, store.get(), &model, saved);
  gate->Open();
  fetch.join();
  CHECK_OK(status);
  // What was there when the fetch began, as a whole.
  CHECK(rows == wanted.rows);
  CHECK(found == std::vector<uint8_t>(found.size(), kRowFound));
  CheckHolds(store.get(), model);
  CheckHolds(store.get(), model);  // now from the cache
}

TEST(AFetchHoldsNobodyUpAndBringsBackNothingOld) {
  for (const Access access : {Access::kTrain, Access::kEvaluate}) {
    for (const Meanwhile what :
         {Meanwhile::kPut, Meanwhile::kPutAndEvict, Meanwhile::kErase,
          Meanwhile::kLoad, Meanwhile::kCompact}) {
      RunMeanwhile(what, access);
    }
  }
}

// A cache like that of a store with these options.
std::unique_ptr<HostCache> CacheOf(const StoreOptions& options) {
  HostTierOptions host;
  host.row_bytes = options.row_bytes;
  host.budget_bytes = options.host_budget_bytes;
  std::unique_ptr<HostCache> cache;
  CHECK_OK(HostCache::Open(host, &cache));
  return cache;
}

TEST(RowsThatAreCachedNeedNoRoom) {
  const StoreOptions options = Options(std::make_shared<SimEnv>());
  const auto store = OpenStore(options);
  Model model = Fill(store.get());
  for (uint64_t version = 2; version < 10; ++version) {
    Put(store.get(), &model, Range(45, 14, version));
  }
  CHECK_EQ(StatsOf(*store).cached_rows, CacheOf(options)->capacity());
  CheckHolds(store.get(), model);
}

// Keys that all have the same two buckets in the index of the cache.
std::vector<Key> Colliding(const StoreOptions& options, size_t count) {
  using namespace index_shard_internal;  // NOLINT(google-build-using-namespace)
  const auto buckets = static_cast<uint64_t>(CacheOf(options)->num_buckets());
  std::vector<Key> keys;
  for (uint64_t quotient = 1; keys.size() < count; ++quotient) {
    const uint64_t other =
        1 + MultiplyHigh(Xxh64(quotient, kDistanceSeed), buckets - 1);
    if (other == 1)
      keys.push_back({Xxh64Inverse(quotient * buckets, kIndexSeed), 0});
  }
  return keys;
}

TEST(ABatchWithoutRoomIsPutAsAWholeOrNotAtAll) {
  const auto env = std::make_shared<SimEnv>();
  const StoreOptions options = Options(env);
  const auto store = OpenStore(options);
  const std::vector<Key> keys = Colliding(options, 11);
  Model model;
  TestBatch some;
  TestBatch all;
  for (size_t i = 0; i < keys.size(); ++i) {
    if (i < 5) some.Add(keys[i], MakeRow(keys[i], 1, kWidth));
    all.Add(keys[i], MakeRow(keys[i], 2, kWidth));
  }
  Put(store.get(), &model, some);
  Put(store.get(), &model, Range(0, 9, 1));
  env->Reset();
  env->FailAtCall(0, Fault::kIoError, true);
  CHECK(!store->Put(all.span(), all.rows.data()).ok());
  env->Reset();
  CHECK_EQ(StatsOf(*store).put_bytes, 0);
  CHECK_EQ(StatsOf(*store).rows, 14);
  CHECK(Dump(store.get()) == model);
  // Two buckets have room for ten of the eleven.
  const int64_t put = StatsOf(*store).put_bytes;
  Put(store.get(), &model, all);
  CHECK(StatsOf(*store).put_bytes > put);
  CHECK_EQ(StatsOf(*store).rows, 20);
  CHECK(Dump(store.get()) == model);
}

}  // namespace
}  // namespace oneemb
