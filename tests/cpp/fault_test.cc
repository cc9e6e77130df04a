// One call of the disk fails, whichever it is and in whatever way: the store
// says so, loses no row that it accepted, and never returns a wrong one.
#include <algorithm>

#include "store_worker.h"

namespace oneemb {
namespace {

constexpr int64_t kWidth = kWorkerWidth;

struct Outcome {
  int64_t failures = 0;  // that the disk had
  bool reached = false;  // whether call k was made at all
};

// Runs the workload with the fault, then heals the disk.
Outcome RunWithFault(StoreKind kind, int64_t k, Fault fault, bool forever,
                     bool silent) {
  const auto env = std::make_shared<SimEnv>(3);
  std::unique_ptr<Store> store = OpenStore(SmallOptions(env, kWidth, kind));
  env->Reset();
  env->FailAtCall(k, fault, forever);
  Worker worker(store.get());
  worker.Run();
  const Outcome outcome{env->failures(), env->calls() > k};
  env->Reset();
  if (silent) {
    worker.CheckNothingWrong();
  } else {
    worker.CheckAllThere(forever);
  }
  return outcome;
}

int64_t Sweep(Fault fault, bool forever, int64_t step, bool silent) {
  int64_t failures = 0;
  for (const StoreKind kind : kAllKinds) {
    bool reached = true;
    for (int64_t k = 0; reached; k += step) {
      const Outcome outcome = RunWithFault(kind, k, fault, forever, silent);
      failures += outcome.failures > 0 ? 1 : 0;
      reached = outcome.reached;
    }
  }
  return failures;
}

TEST(EveryCallFailsOnce) {
  for (const Fault fault : {Fault::kIoError, Fault::kNoSpace, Fault::kShort,
                            Fault::kInterrupted, Fault::kNoLink}) {
    const int64_t failures = Sweep(fault, false, 1, false);
    std::cout << failures << " faults of kind " << static_cast<int>(fault)
              << '\n';
    CHECK(failures > 10);
  }
}

TEST(FromEveryCallOnAllFail) {
  for (const Fault fault : {Fault::kIoError, Fault::kNoSpace, Fault::kNoLink}) {
    CHECK(Sweep(fault, true, 1, false) > 10);
  }
}

TEST(WrongBitsAndLostWritesAreNeverReturned) {
  for (const Fault fault : {Fault::kFlipBit, Fault::kLostWrite}) {
    CHECK(Sweep(fault, false, 1, true) > 10);
  }
}

TEST(AFullDiskIsAnErrorAndTheStoreGoesOnReading) {
  const auto env = std::make_shared<SimEnv>();
  const auto store = OpenStore(SmallOptions(env, kWidth));
  env->SetCapacity(int64_t{40} * 4 * kBlockBytes);
  Model model;
  Status status;
  for (uint64_t id = 0; status.ok(); id += 10) {
    TestBatch batch;
    for (uint64_t i = 0; i < 10; ++i) {
      batch.Add({id + i, 0}, MakeRow({id + i, 0}, 1, kWidth));
    }
    status = store->Put(batch.span(), batch.rows.data());
    if (status.ok()) PutInto(&model, batch);
  }
  CHECK_EQ(status.kind(), StatusKind::kNoSpace);
  CHECK(status.message().find("No space left") != std::string::npos);
  CHECK(model.size() > 100);
  CHECK(Dump(store.get()) == model);
  // What is erased makes room again.
  std::vector<Key> keys;
  for (const auto& entry : model) keys.push_back(entry.first);
  std::vector<uint8_t> erased(keys.size());
  CHECK_OK(store->Erase({keys.data(), static_cast<int64_t>(keys.size())},
                        erased.data()));
  const std::vector<char> row = MakeRow({1, 1}, 1, kWidth);
  const Key key{1, 1};
  CHECK_OK(store->Put({&key, 1}, row.data()));
  CHECK(Dump(store.get()) == Model({{key, row}}));
}

TEST(ADamagedRowIsNamedAndTheOthersAreRead) {
  const auto env = std::make_shared<SimEnv>();
  const auto store = OpenStore(SmallOptions(env, kWidth));
  TestBatch batch;
  for (uint64_t id = 0; id < 8; ++id) {
    batch.Add({id, 3}, MakeRow({id, 3}, 1, kWidth));
  }
  CHECK_OK(store->Put(batch.span(), batch.rows.data()));
  for (const std::string& path : env->Files()) {
    if (path.rfind("store/seg/", 0) != 0) continue;
    std::vector<char> content = env->Content(path);
    content[kBlockBytes + 500] ^= 1;  // in the row of id 0
    env->SetContent(path, content);
  }
  std::vector<char> rows(8 * kWidth, 'x');
  std::vector<uint8_t> found(8);
  const Status status = store->Fetch(batch.span(), rows.data(), found.data());
  CHECK_EQ(status.kind(), StatusKind::kCorruption);
  CHECK(status.message().find("id 0 of table 3") != std::string::npos);
  CHECK(status.message().find("store/seg/") != std::string::npos);
  CHECK_EQ(found[0], kRowFailed);
  CHECK_EQ(rows[0], 'x');
  for (size_t i = 1; i < 8; ++i) CHECK_EQ(found[i], kRowFound);
  CHECK(std::equal(rows.begin() + kWidth, rows.end(),
                   batch.rows.begin() + kWidth));
}

}  // namespace
}  // namespace oneemb
