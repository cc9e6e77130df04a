// Rows in host memory against a map, after every step.
#include "store/host_tier.h"

#include <algorithm>
#include <atomic>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "counted_pages.h"

namespace oneemb {
namespace {

using Keys = std::vector<Key>;
using Model = std::map<Key, std::string>;

int64_t Size(const Keys& keys) { return static_cast<int64_t>(keys.size()); }

std::unique_ptr<HostTier> Open(int64_t row_bytes, int64_t budget = INT64_MAX,
                               PageSource* pages = PageSource::System(),
                               Crew* crew = Crew::Get()) {
  std::unique_ptr<HostTier> tier;
  CHECK(HostTier::Open({row_bytes, budget}, &tier, pages, crew).ok());
  return tier;
}

std::string RandomRow(std::mt19937_64* random, int64_t bytes) {
  std::string row(static_cast<size_t>(bytes), '\0');
  for (char& c : row) c = static_cast<char>((*random)());
  return row;
}

Key RandomKey(std::mt19937_64* random) {
  constexpr uint64_t kEdges[] = {0, ~uint64_t{0}, uint64_t{1} << 63};
  const uint64_t id =
      (*random)() % 8 == 0 ? kEdges[(*random)() % 3] : (*random)() % 200;
  return {id, static_cast<uint16_t>((*random)() % 2 == 0 ? 65535 : 0)};
}

void CheckFetch(const HostTier& tier, const Model& model, const Keys& keys,
                int64_t width) {
  std::string rows(keys.size() * static_cast<size_t>(width), 'x');
  std::vector<uint8_t> found(keys.size(), 7);
  tier.Fetch(keys.data(), Size(keys), rows.data(), found.data());
  for (size_t i = 0; i < keys.size(); ++i) {
    const auto it = model.find(keys[i]);
    const std::string row =
        rows.substr(i * static_cast<size_t>(width), static_cast<size_t>(width));
    CHECK_EQ(found[i], it == model.end() ? 0 : 1);
    // A row that is not there leaves what was in the buffer.
    CHECK(row ==
          (it == model.end() ? std::string(row.size(), 'x') : it->second));
  }
}

void CheckScan(const HostTier& tier, const Model& model, int64_t width) {
  Model found;
  uint64_t cursor = 0;
  constexpr int64_t kChunk = 11;
  Keys keys(kChunk);
  std::string rows(static_cast<size_t>(kChunk * width), '\0');
  while (true) {
    const int64_t n = tier.Scan(&cursor, kChunk, keys.data(), rows.data());
    if (n == 0) break;
    for (int64_t i = 0; i < n; ++i) {
      const bool first =
          found
              .emplace(keys[static_cast<size_t>(i)],
                       rows.substr(static_cast<size_t>(i * width),
                                   static_cast<size_t>(width)))
              .second;
      CHECK(first);
    }
  }
  CHECK(found == model);
  CHECK_EQ(tier.size(), static_cast<int64_t>(model.size()));
}

void Step(HostTier* tier, Model* model, std::mt19937_64* random,
          int64_t width) {
  Keys keys((*random)() % 40);
  for (Key& key : keys) key = RandomKey(random);
  if ((*random)() % 3 < 2) {
    std::string rows;
    for (const Key key : keys) {
      (*model)[key] = RandomRow(random, width);
      rows += (*model)[key];
    }
    CHECK(tier->Put(keys.data(), rows.data(), Size(keys)).ok());
  } else {
    std::vector<uint8_t> erased(keys.size());
    tier->Erase(keys.data(), Size(keys), erased.data());
    for (size_t i = 0; i < keys.size(); ++i) {
      CHECK_EQ(erased[i], model->erase(keys[i]));
    }
  }
  CheckFetch(*tier, *model, keys, width);
}

TEST(IsAMapForEveryWidth) {
  for (const int64_t width : {4, 5, 12, 64, 68, 100, 1536, 65536}) {
    std::mt19937_64 random(static_cast<uint64_t>(width));
    const auto tier = Open(width);
    Model model;
    const int steps = width > 10000 ? 30 : 300;
    for (int step = 0; step < steps; ++step) {
      Step(tier.get(), &model, &random, width);
      if (step % 20 == 0) CheckScan(*tier, model, width);
    }
    CheckScan(*tier, model, width);
    tier->Clear();
    CheckScan(*tier, {}, width);
    Step(tier.get(), &(model = {}), &random, width);
  }
}

TEST(OptionsAreChecked) {
  std::unique_ptr<HostTier> tier;
  for (const HostTierOptions options :
       {HostTierOptions{0, 100}, HostTierOptions{3, 100},
        HostTierOptions{65537, 100}, HostTierOptions{64, 0},
        HostTierOptions{64, -1}}) {
    const Status status = HostTier::Open(options, &tier);
    CHECK_EQ(status.kind(), StatusKind::kInvalidArgument);
    CHECK(tier == nullptr);
  }
}

// Fills a tier row by row and batch by batch until it refuses; what it takes
// from the system, page by page, stays within the budget.
TEST(BudgetIsAnUpperBound) {
  for (const int64_t width : {4, 64, 1000, 65536}) {
    constexpr int64_t kBudget = 24 << 20;
    std::mt19937_64 random(5);
    CountedPages pages;
    const auto tier = Open(width, kBudget, &pages);
    Model model;
    const int64_t batch = width < 100 ? 5000 : 50;
    Keys keys(static_cast<size_t>(batch));
    std::string rows(static_cast<size_t>(batch * width), 'r');
    Status status;
    int64_t size = 0;
    while (true) {
      for (Key& key : keys) key = {random(), 3};
      status = tier->Put(keys.data(), rows.data(), batch);
      CHECK(tier->bytes() <= kBudget);
      if (!status.ok()) break;
      size += batch;
      CHECK_EQ(tier->size(), size);
    }
    CHECK_EQ(status.kind(), StatusKind::kNoSpace);
    CHECK(status.message().find(std::to_string(kBudget)) != std::string::npos);
    CHECK_EQ(tier->size(), size);
    CHECK(pages.ResidentBytes() <= kBudget);
    // It was used, too: half of it at least, whatever the width.
    CHECK(size * (width + 15) > kBudget / 2);
    // What is there can still be overwritten and removed.
    uint64_t cursor = 0;
    const int64_t n = tier->Scan(&cursor, 5, keys.data(), rows.data());
    CHECK_EQ(n, 5);
    CHECK(tier->Put(keys.data(), rows.data(), n).ok());
    std::vector<uint8_t> erased(5);
    tier->Erase(keys.data(), n, erased.data());
    CHECK_EQ(tier->size(), size - n);
    CHECK(tier->Put(keys.data(), rows.data(), n).ok());
    CHECK_EQ(tier->size(), size);
  }
}

// The slot of a row that another one of its batch replaced is used again.
TEST(DuplicatesLeaveNothingBehind) {
  constexpr int64_t kWidth = 1000;
  const auto tier = Open(kWidth);
  const Keys keys(100, Key{5, 5});
  const std::string rows(keys.size() * kWidth, 'r');
  std::vector<uint8_t> erased(1);
  for (int round = 0; round < 50; ++round) {
    CHECK(tier->Put(keys.data(), rows.data(), Size(keys)).ok());
    CHECK_EQ(tier->size(), 1);
    CHECK(tier->bytes() < 300000);
    tier->Erase(keys.data(), 1, erased.data());
    CHECK_EQ(erased[0], 1);
  }
}

TEST(NoMemoryChangesNothing) {
  constexpr int64_t kWidth = 300;
  int failures = 0;
  for (int64_t n = 0; failures == 0 || n < 2000; n += 53) {
    CountedPages pages;
    pages.FailAfter(n);
    std::mt19937_64 random(6);
    const auto tier = Open(kWidth, INT64_MAX, &pages);
    Model model;
    for (int step = 0; step < 12; ++step) {
      Keys keys(150);
      std::string rows;
      Model next = model;
      for (Key& key : keys) {
        key = {random() % 2000, 0};
        next[key] = RandomRow(&random, kWidth);
        rows += next[key];
      }
      const Status status = tier->Put(keys.data(), rows.data(), Size(keys));
      if (!status.ok()) {
        CHECK_EQ(status.kind(), StatusKind::kNoMemory);
        CheckScan(*tier, model, kWidth);
        ++failures;
        pages.FailAfter(-1);
        CHECK(tier->Put(keys.data(), rows.data(), Size(keys)).ok());
      }
      model = next;
    }
    CheckScan(*tier, model, kWidth);
  }
  CHECK(failures > 5);
}

// Large batches in which most keys occur several times.
TEST(ACrewDoesWhatOneThreadDoes) {
  constexpr int64_t kWidth = 24;
  Crew crew(3);
  std::mt19937_64 random(9);
  const auto tier = Open(kWidth, INT64_MAX, PageSource::System(), &crew);
  Model model;
  for (int step = 0; step < 6; ++step) {
    Keys keys(20000);
    std::string rows;
    for (Key& key : keys) {
      key = {random() % 6000, 0};
      model[key] = RandomRow(&random, kWidth);
      rows += model[key];
    }
    CHECK(tier->Put(keys.data(), rows.data(), Size(keys)).ok());
    for (Key& key : keys) key.id = random() % 7000;
    CheckFetch(*tier, model, keys, kWidth);
  }
  CheckScan(*tier, model, kWidth);
}

TEST(ReadersMayShare) {
  constexpr int64_t kWidth = 40;
  std::mt19937_64 random(7);
  const auto tier = Open(kWidth);
  Keys keys(3000);
  std::string rows;
  for (size_t i = 0; i < keys.size(); ++i) {
    keys[i] = {i, 0};
    rows += RandomRow(&random, kWidth);
  }
  CHECK(tier->Put(keys.data(), rows.data(), Size(keys)).ok());
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      std::string mine(rows.size(), '\0');
      std::vector<uint8_t> found(keys.size());
      for (int i = 0; i < 5; ++i) {
        tier->Fetch(keys.data(), Size(keys), mine.data(), found.data());
        if (mine != rows) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK_EQ(wrong.load(), 0);
}

}  // namespace
}  // namespace oneemb
