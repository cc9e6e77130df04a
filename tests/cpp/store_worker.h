// A workload of which any call may fail, and a model that follows the calls
// that did not: for tests that make the disk or the memory fail.
#pragma once

#include <algorithm>
#include <functional>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "test_store.h"

namespace oneemb {

constexpr int64_t kWorkerWidth = 1000;
constexpr uint64_t kWorkerIds = 30;

class Worker {
 public:
  // Runs one call of the store.
  using Runner = std::function<Status(const std::function<Status()>& call)>;

  explicit Worker(
      Store* of, Runner runner = [](const auto& call) { return call(); })
      : store(of), run_(std::move(runner)) {}

  void Put() {
    const TestBatch batch = RandomBatch(&random_, 15, kWorkerWidth, kWorkerIds);
    if (Note([&] { return store->Put(batch.span(), batch.rows.data()); })) {
      PutInto(&model, batch);
    }
  }
  void Erase() {
    const TestBatch batch = RandomBatch(&random_, 3, kWorkerWidth, kWorkerIds);
    std::vector<uint8_t> erased(batch.keys.size());
    const Status status =
        run_([&] { return store->Erase(batch.span(), erased.data()); });
    CHECK(status.ok() || status.kind() == StatusKind::kNoMemory);
    if (!status.ok()) return;
    for (const Key key : batch.keys) model.erase(key);
  }
  void Save(const std::string& name) {
    const bool ok = Note([&] { return store->Save(name, name); });
    (ok ? saved : unsaved)[name] = model;
  }
  void Load(const std::string& name) {
    if (Note([&] { return store->Load(name, nullptr); })) {
      model = saved.at(name);
    }
  }
  void Run() {
    for (int i = 0; i < 3; ++i) Put();
    Save("a");
    Erase();
    for (int i = 0; i < 3; ++i) Put();
    CheckNothingWrong();
    Save("b");
    if (saved.count("a") != 0) Load("a");
    Put();
    (void)Note([&] { return store->Compact(); });
    if (Note([&] { return store->Delete("b"); })) saved.erase("b");
  }

  // Fetches every key: a row that is found is the model's, one that is not is
  // none of the model's, and one that failed was reported.
  void CheckNothingWrong() {
    const std::vector<Key> keys = AllKeys();
    std::vector<char> rows(keys.size() * kWorkerWidth);
    std::vector<uint8_t> found(keys.size(), kRowAbsent);
    const Status status = run_([&] {
      return store->Fetch({keys.data(), static_cast<int64_t>(keys.size())},
                          rows.data(), found.data());
    });
    // A fetch that could not even begin finds nothing.
    const bool began = status.ok() || std::any_of(found.begin(), found.end(),
                                                  [](uint8_t f) { return f; });
    for (size_t i = 0; i < keys.size() && began; ++i) {
      const auto it = model.find(keys[i]);
      if (found[i] == kRowFailed) {
        CHECK(!status.ok());
        CHECK(it != model.end() || status.kind() == StatusKind::kNoMemory);
        continue;
      }
      CHECK_EQ(found[i], it == model.end() ? kRowAbsent : kRowFound);
      if (found[i] == kRowAbsent) continue;
      const auto begin = rows.begin() + static_cast<int64_t>(i) * kWorkerWidth;
      CHECK(it->second == std::vector<char>(begin, begin + kWorkerWidth));
    }
  }

  // The trouble is over: nothing that was accepted is lost, and the store goes
  // on as if new. `lasting`: it was there to the end, so that a snapshot which
  // could not be synced may not have been taken back either; it is whole then.
  void CheckAllThere(bool lasting) {
    CHECK(Dump(store) == model);
    std::vector<std::string> names;
    CHECK_OK(store->List(&names));
    // One whose deletion failed is gone or whole.
    if (std::count(names.begin(), names.end(), "b") == 0) saved.erase("b");
    for (const std::string& name : names) {
      if (lasting && unsaved.count(name) != 0) saved[name] = unsaved.at(name);
      CHECK(saved.count(name) != 0);
    }
    Put();
    CHECK_OK(last_);
    Save("later");
    CHECK_OK(last_);
    for (const auto& [name, rows] : saved) {
      CHECK_OK(store->Verify(name));
      CHECK_OK(store->Load(name, nullptr));
      CHECK(Dump(store) == rows);
    }
  }

  Store* const store;
  Model model;
  std::map<std::string, Model> saved;
  std::map<std::string, Model> unsaved;  // Save failed

 private:
  static std::vector<Key> AllKeys() {
    std::vector<Key> keys;
    for (const uint16_t table : {uint16_t{0}, uint16_t{65535}}) {
      for (uint64_t id = 0; id + 1 < kWorkerIds; ++id) {
        keys.push_back({id, table});
      }
      keys.push_back({~uint64_t{0}, table});
    }
    return keys;
  }

  bool Note(const std::function<Status()>& call) {
    last_ = run_(call);
    CHECK(last_.ok() || !last_.message().empty());
    return last_.ok();
  }

  const Runner run_;
  std::mt19937_64 random_{11};
  Status last_;  // of what Note has run
};

}  // namespace oneemb
