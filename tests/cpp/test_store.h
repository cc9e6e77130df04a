// Small stores, their rows, and a std::map as the model of what they hold.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "sim_env.h"
#include "store/store.h"

namespace oneemb {

using Model = std::map<Key, std::vector<char>>;

inline void CheckOk(const Status& status, const char* file, int line) {
  if (!status.ok()) check::Fail("status: " + status.message(), file, line);
}
#define CHECK_OK(status) ::oneemb::CheckOk(status, __FILE__, __LINE__)

// Segments of a few frames, so that small tests have many of them.
inline StoreOptions SmallOptions(std::shared_ptr<Env> env,
                                 int64_t row_bytes = 100,
                                 StoreKind kind = StoreKind::kSsd) {
  StoreOptions options;
  options.kind = kind;
  // A cache that holds a part of the rows only.
  if (kind == StoreKind::kCachedSsd) {
    options.host_budget_bytes = (int64_t{12} << 10) + 40 * row_bytes;
  }
  options.path = "store";
  options.row_bytes = row_bytes;
  options.env = std::move(env);
  options.ssd.segment_bytes = 4 * kBlockBytes;
  options.ssd.read_depth = 4;
  options.ssd.write_bytes = 2 * kBlockBytes;
  options.ssd.write_depth = 2;
  options.ssd.compaction = CompactionMode::kInline;
  // Every closed segment is small enough to be merged, and two are too many.
  options.ssd.policy.fragment_share = 2;
  options.ssd.policy.most_fragments = 1;
  return options;
}

inline std::unique_ptr<Store> OpenStore(const StoreOptions& options) {
  std::unique_ptr<Store> store;
  CHECK_OK(Store::Open(options, &store));
  return store;
}

constexpr StoreKind kAllKinds[] = {StoreKind::kHost, StoreKind::kSsd,
                                   StoreKind::kCachedSsd};

// A row that tells whose it is and of which version.
inline std::vector<char> MakeRow(Key key, uint64_t version, int64_t bytes) {
  // Rows are made by the million, and a Mersenne twister takes long to seed.
  uint64_t random = key.id * 31 + key.table * 7 + version * 1000003 + 1;
  std::vector<char> row(static_cast<size_t>(bytes));
  for (char& c : row) {
    random = random * 6364136223846793005 + 1442695040888963407;
    c = static_cast<char>(random >> 56);
  }
  return row;
}

struct TestBatch {
  std::vector<Key> keys;
  std::vector<char> rows;

  KeySpan span() const {
    return {keys.data(), static_cast<int64_t>(keys.size())};
  }
  void Add(Key key, const std::vector<char>& row) {
    keys.push_back(key);
    rows.insert(rows.end(), row.begin(), row.end());
  }
};

// Few different keys, so that they meet again; the odd ones are among them.
inline Key RandomKey(std::mt19937_64* random, uint64_t ids = 60) {
  const uint64_t id = (*random)() % ids;
  const auto table = static_cast<uint16_t>((*random)() % 2 == 0 ? 0 : 65535);
  return {id == 0 ? ~uint64_t{0} : id - 1, table};
}

inline TestBatch RandomBatch(std::mt19937_64* random, int64_t count,
                             int64_t row_bytes, uint64_t ids = 60) {
  TestBatch batch;
  for (int64_t i = 0; i < count; ++i) {
    const Key key = RandomKey(random, ids);
    batch.Add(key, MakeRow(key, (*random)(), row_bytes));
  }
  return batch;
}

inline void PutInto(Model* model, const TestBatch& batch) {
  const size_t width =
      batch.rows.size() / std::max<size_t>(1, batch.keys.size());
  for (size_t i = 0; i < batch.keys.size(); ++i) {
    const auto begin = batch.rows.begin() + static_cast<int64_t>(i * width);
    (*model)[batch.keys[i]] = {begin, begin + static_cast<int64_t>(width)};
  }
}

// All rows, by Iterate.
inline Model Dump(Store* store) {
  std::unique_ptr<RowSource> source;
  CHECK_OK(store->Iterate(&source));
  const auto width = static_cast<size_t>(store->options().row_bytes);
  Model rows;
  RowBatch batch;
  for (;;) {
    CHECK_OK(source->Next(&batch));
    if (batch.empty()) return rows;
    for (const Status& bad : batch.bad) CHECK_OK(bad);
    for (size_t i = 0; i < batch.keys.size(); ++i) {
      const auto begin = batch.rows.begin() + static_cast<int64_t>(i * width);
      const bool fresh =
          rows.emplace(
                  batch.keys[i],
                  std::vector<char>(begin, begin + static_cast<int64_t>(width)))
              .second;
      CHECK(fresh);
    }
  }
}

// Whether fetching every key that may exist, and some that do not, gives the
// model.
inline void CheckHolds(Store* store, const Model& model, uint64_t ids = 60) {
  const auto width = static_cast<size_t>(store->options().row_bytes);
  std::vector<Key> keys;
  for (const uint16_t table : {uint16_t{0}, uint16_t{65535}}) {
    for (uint64_t id = 0; id + 1 < ids; ++id) keys.push_back({id, table});
    keys.push_back({~uint64_t{0}, table});
  }
  std::vector<char> rows(keys.size() * width, 'x');
  std::vector<uint8_t> found(keys.size(), 9);
  CHECK_OK(store->Fetch({keys.data(), static_cast<int64_t>(keys.size())},
                        rows.data(), found.data()));
  for (size_t i = 0; i < keys.size(); ++i) {
    const auto it = model.find(keys[i]);
    const std::vector<char> row(
        rows.begin() + static_cast<int64_t>(i * width),
        rows.begin() + static_cast<int64_t>((i + 1) * width));
    CHECK_EQ(found[i], it == model.end() ? kRowAbsent : kRowFound);
    CHECK(row ==
          (it == model.end() ? std::vector<char>(width, 'x') : it->second));
  }
  int64_t size = 0;
  CHECK_OK(store->Size(&size));
  CHECK_EQ(size, static_cast<int64_t>(model.size()));
  CHECK(Dump(store) == model);
}

}  // namespace oneemb
