// A crash at every change that a store makes to its disk, and at every change
// of the recovery from it: what was reported saved is there, nothing else is.
#include <algorithm>

#include "test_store.h"

namespace oneemb {
namespace {

// What a process knew when it died.
struct Known {
  std::map<std::string, Model> saved;  // reported saved and not deleted
  std::string in_flight;               // the snapshot being saved or deleted
  Model in_flight_rows;
};

// Puts, erases, compacts, saves, loads and deletes until done or dead. Returns
// false on any failure of a call.
bool Work(Store* store, uint64_t seed, const std::string& prefix,
          Known* known) {
  std::mt19937_64 random(seed);
  const int64_t width = store->options().row_bytes;
  Model model;
  for (int step = 0; step < 12; ++step) {
    const TestBatch batch = RandomBatch(&random, 25, width, 40);
    if (!store->Put(batch.span(), batch.rows.data()).ok()) return false;
    PutInto(&model, batch);
    if (step % 4 == 1) {
      const TestBatch gone = RandomBatch(&random, 5, width, 40);
      std::vector<uint8_t> erased(gone.keys.size());
      if (!store->Erase(gone.span(), erased.data()).ok()) return false;
      for (const Key key : gone.keys) model.erase(key);
    }
    if (step % 3 != 2) continue;
    const std::string name = prefix + std::to_string(step);
    known->in_flight = name;
    known->in_flight_rows = model;
    if (!store->Save(name, name).ok()) return false;
    known->saved[name] = model;
    if (step == 8) {
      known->in_flight = prefix + "2";
      known->in_flight_rows = known->saved[known->in_flight];
      known->saved.erase(known->in_flight);
      if (!store->Delete(known->in_flight).ok()) return false;
      if (!store->Load(prefix + "5", nullptr).ok()) return false;
      model = known->saved[prefix + "5"];
    }
    known->in_flight.clear();
  }
  return true;
}

// Every snapshot is one that was reported, or the one in flight, and whole.
void CheckSnapshots(Store* store, const Known& known) {
  std::vector<std::string> names;
  CHECK_OK(store->List(&names));
  for (const auto& entry : known.saved) {
    CHECK(std::find(names.begin(), names.end(), entry.first) != names.end());
  }
  for (const std::string& name : names) {
    const auto it = known.saved.find(name);
    const bool reported = it != known.saved.end();
    CHECK(reported || name == known.in_flight);
    CHECK_OK(store->Verify(name));
    std::string user;
    CHECK_OK(store->Load(name, &user));
    CHECK_EQ(user, name);
    CHECK(Dump(store) == (reported ? it->second : known.in_flight_rows));
  }
}

// Opens what a crash has left, checks it, and works on.
void CheckRecovers(const std::shared_ptr<SimEnv>& disk, const Known& known,
                   int64_t width, StoreKind kind) {
  Known later = known;
  auto store = OpenStore(SmallOptions(disk, width, kind));
  CheckSnapshots(store.get(), known);
  store.reset();
  store = OpenStore(SmallOptions(disk, width, kind));
  for (const std::string& path : disk->Files()) {
    CHECK(path.rfind("store/tmp/", 0) != 0);
  }
  CHECK(Work(store.get(), 7, "again", &later));
  later.in_flight = known.in_flight;
  later.in_flight_rows = known.in_flight_rows;
  CheckSnapshots(store.get(), later);
}

// Works on a new disk and closes the store, until change k; the disk, and what
// was known.
std::shared_ptr<SimEnv> Crash(int64_t k, int64_t width, StoreKind kind,
                              Known* known, bool* finished) {
  const auto env = std::make_shared<SimEnv>(5);
  env->CrashAtChange(k);
  std::unique_ptr<Store> store;
  const bool worked =
      Store::Open(SmallOptions(env, width, kind), &store).ok() &&
      Work(store.get(), 3, "s", known);
  CHECK(worked || env->crashed());
  store.reset();
  *finished = !env->crashed();
  return env;
}

void CrashEverywhere(StoreKind kind, Loss loss) {
  constexpr int64_t kWidth = 600;
  bool finished = false;
  int64_t crashes = 0;
  for (int64_t k = 0; !finished; ++k) {
    Known known;
    const auto env = Crash(k, kWidth, kind, &known, &finished);
    CheckRecovers(env->AfterCrash(loss, static_cast<uint64_t>(k)), known,
                  kWidth, kind);
    ++crashes;
  }
  std::cout << crashes << " crashes\n";
  CHECK(crashes > 100);
}

// A second crash, at a change of the recovery from a first.
void CrashDuringRecovery(Loss loss) {
  constexpr int64_t kWidth = 600;
  constexpr StoreKind kKind = StoreKind::kSsd;
  const int64_t start = static_cast<int64_t>(loss) * 5;
  bool finished = false;
  int64_t crashes = 0;
  for (int64_t k = start; !finished; k += 25) {
    Known known;
    const auto env = Crash(k, kWidth, kKind, &known, &finished);
    bool recovered = false;
    for (int64_t j = 0; !recovered; ++j) {
      const auto second = env->AfterCrash(loss, static_cast<uint64_t>(k));
      second->CrashAtChange(j);
      std::unique_ptr<Store> store;
      recovered = Store::Open(SmallOptions(second, kWidth, kKind), &store).ok();
      store.reset();
      const Loss again = kAllLosses[j % 5];
      CheckRecovers(second->AfterCrash(again, static_cast<uint64_t>(j)), known,
                    kWidth, kKind);
      ++crashes;
    }
  }
  std::cout << crashes << " nested crashes\n";
  CHECK(crashes > 100);
}

// One test for each kind of store and way to lose what was not synced, so that
// they can run side by side.
#define CRASH_TESTS(loss)                                                \
  TEST(OnSsd##loss) { CrashEverywhere(StoreKind::kSsd, Loss::k##loss); } \
  TEST(Cached##loss) {                                                   \
    CrashEverywhere(StoreKind::kCachedSsd, Loss::k##loss);               \
  }                                                                      \
  TEST(InHostMemory##loss) {                                             \
    CrashEverywhere(StoreKind::kHost, Loss::k##loss);                    \
  }                                                                      \
  TEST(DuringRecovery##loss) { CrashDuringRecovery(Loss::k##loss); }

CRASH_TESTS(DropAll)
CRASH_TESTS(KeepAll)
CRASH_TESTS(Random)
CRASH_TESTS(Torn)
CRASH_TESTS(Garbage)

}  // namespace
}  // namespace oneemb
