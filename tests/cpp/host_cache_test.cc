// The cache, case by case: which rows stay, and what it costs.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <list>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "counted_pages.h"
#include "test_host_cache.h"

namespace oneemb {
namespace {

// Puts `n` clean rows with ids from `first` on; returns how many were taken.
int64_t Fill(HostCache* cache, uint64_t first, int64_t n, uint64_t batch = 0) {
  Keys keys;
  for (int64_t i = 0; i < n; ++i) {
    keys.push_back({first + static_cast<uint64_t>(i), 0});
  }
  const std::string rows(static_cast<size_t>(n * kWidth), 'r');
  Keys victims;
  std::vector<char> victim_rows;
  CHECK(cache->MakeRoom(n, &victims, &victim_rows).ok());
  CHECK(victims.empty());  // clean rows need no writing
  cache->DropVictims();
  std::vector<uint8_t> taken(keys.size());
  cache->Insert(keys.data(), rows.data(), n, false, taken.data(), batch);
  return std::count(taken.begin(), taken.end(), 1);
}

int64_t CountHere(const HostCache& cache, uint64_t first, int64_t n) {
  int64_t here = 0;
  for (int64_t i = 0; i < n; ++i) {
    here += Peek(cache, {first + static_cast<uint64_t>(i), 0}).empty() ? 0 : 1;
  }
  return here;
}

TEST(RowsOfABatchInFlightStay) {
  const auto cache = OpenCache(100);
  const int64_t capacity = cache->capacity();
  const uint64_t batch = cache->BeginBatch();
  const uint64_t later = cache->BeginBatch();
  CHECK(batch != 0 && later != batch);
  CHECK_EQ(Fill(cache.get(), 0, 50, batch), 50);
  CHECK_EQ(Fill(cache.get(), 1000, capacity - 50), capacity - 50);
  // Everything else goes, again and again.
  for (uint64_t round = 2; round < 8; ++round) {
    CHECK_EQ(Fill(cache.get(), round * 1000, capacity), capacity - 50);
    CHECK_EQ(CountHere(*cache, 0, 50), 50);
  }
  // A later batch that ends first does not unpin them.
  Keys keys(50);
  for (uint64_t i = 0; i < 50; ++i) keys[i] = {i, 0};
  std::string rows(50 * kWidth, '\0');
  std::vector<uint8_t> found(50);
  cache->Fetch(keys.data(), 50, rows.data(), found.data(), later);
  cache->EndBatch(later);
  Fill(cache.get(), 20000, capacity);
  CHECK_EQ(CountHere(*cache, 0, 50), 50);
  cache->EndBatch(batch);
  for (uint64_t round = 30; round < 40; ++round) {
    Fill(cache.get(), round * 1000, capacity);
  }
  CHECK_EQ(CountHere(*cache, 0, 50), 0);
}

TEST(VictimsThatAreFetchedStay) {
  const auto cache = OpenCache(100);
  const int64_t capacity = cache->capacity();
  Keys keys(static_cast<size_t>(capacity));
  for (uint64_t i = 0; i < keys.size(); ++i) keys[i] = {i, 0};
  std::string rows(keys.size() * kWidth, 'd');
  std::vector<uint8_t> taken(keys.size());
  cache->Insert(keys.data(), rows.data(), capacity, true, taken.data());
  Keys victims;
  std::vector<char> victim_rows;
  CHECK(cache->MakeRoom(20, &victims, &victim_rows).ok());
  CHECK_EQ(victims.size(), 20U);
  const uint64_t batch = cache->BeginBatch();
  cache->Fetch(victims.data(), 10, rows.data(), taken.data(), batch);
  cache->DropVictims();
  for (size_t i = 0; i < victims.size(); ++i) {
    CHECK_EQ(Peek(*cache, victims[i]).empty(), i >= 10);
  }
  CHECK_EQ(cache->dirty(), capacity - 20);
  CHECK_EQ(cache->stats().write_backs, 20);
  cache->EndBatch(batch);
}

TEST(RowsInUseOutliveRowsThatAreNot) {
  const auto cache = OpenCache(100);
  const int64_t capacity = cache->capacity();
  Fill(cache.get(), 0, capacity);
  Keys used(10);
  for (uint64_t i = 0; i < 10; ++i) used[i] = {3 * i, 0};
  std::string rows(10 * kWidth, '\0');
  std::vector<uint8_t> found(10);
  for (uint64_t round = 1; round < 20; ++round) {
    cache->Fetch(used.data(), 10, rows.data(), found.data());
    CHECK_EQ(std::count(found.begin(), found.end(), 1), 10);
    Fill(cache.get(), 1000 * round, capacity / 2);
  }
}

// No slot is lost to the queues, whatever was removed where.
TEST(EveryRowCanLeave) {
  const auto cache = OpenCache(200);
  const int64_t capacity = cache->capacity();
  std::mt19937_64 random(3);
  for (uint64_t round = 0; round < 300; ++round) {
    const auto n = static_cast<int64_t>(random() % 200);
    Fill(cache.get(), 1000 * round, std::min(n, capacity));
    Keys keys(random() % 100);
    for (Key& key : keys) key = {1000 * round + random() % 200, 0};
    cache->Erase(keys.data(), Size(keys));
  }
  for (uint64_t round = 1000; round < 1004; ++round) {
    CHECK_EQ(Fill(cache.get(), 1000 * round, capacity), capacity);
    CHECK_EQ(CountHere(*cache, 1000 * round, capacity), capacity);
  }
}

TEST(AllRowsMayBePinned) {
  const auto cache = OpenCache(64);
  const int64_t capacity = cache->capacity();
  const uint64_t batch = cache->BeginBatch();
  CHECK_EQ(Fill(cache.get(), 0, capacity, batch), capacity);
  CHECK_EQ(Fill(cache.get(), 5000, 10), 0);  // refused, not evicted
  CHECK_EQ(CountHere(*cache, 0, capacity), capacity);
  cache->EndBatch(batch);
  CHECK_EQ(Fill(cache.get(), 5000, 10), 10);
}

// Numbers of batches are kept in 7 bits: they wrap many times here.
TEST(BatchesWrapAround) {
  const auto cache = OpenCache(32);
  const int64_t capacity = cache->capacity();
  for (uint64_t round = 0; round < 1000; ++round) {
    const uint64_t batch = cache->BeginBatch();
    CHECK(batch != 0);
    const uint64_t first = 100 * round;
    CHECK_EQ(Fill(cache.get(), first, 8, batch), 8);
    Fill(cache.get(), 1000000 + first, capacity);
    CHECK_EQ(CountHere(*cache, first, 8), 8);
    cache->EndBatch(batch);
  }
  std::vector<uint64_t> batches;
  for (uint64_t i = 0; i < HostCache::kMostBatches; ++i) {
    batches.push_back(cache->BeginBatch());
    CHECK(batches.back() != 0);
  }
  CHECK_EQ(cache->BeginBatch(), 0U);
  cache->EndBatch(0);
  cache->EndBatch(batches[1]);  // the oldest is still in flight
  CHECK_EQ(cache->BeginBatch(), 0U);
  cache->EndBatch(batches[0]);
  CHECK(cache->BeginBatch() != 0);
  CHECK(cache->BeginBatch() != 0);
  CHECK_EQ(cache->BeginBatch(), 0U);
}

TEST(BudgetIsAnUpperBound) {
  for (const int64_t width : {4, 64, 1000, 65536}) {
    for (const int64_t budget : {300000, 1 << 20, 30 << 20}) {
      CountedPages pages;
      std::unique_ptr<HostCache> cache;
      CHECK(HostCache::Open({width, budget}, &cache, &pages).ok());
      CHECK(cache->bytes() <= budget);
      const int64_t capacity = cache->capacity();
      const int64_t batch = std::min<int64_t>(capacity, 1000);
      const std::string rows(static_cast<size_t>(batch * width), 'r');
      Keys keys(static_cast<size_t>(batch));
      std::vector<uint8_t> taken(keys.size());
      std::mt19937_64 random(1);
      for (int64_t n = 0; n < 2 * capacity + batch; n += batch) {
        for (Key& key : keys) key = {random(), 1};
        Keys victims;
        std::vector<char> victim_rows;
        CHECK(cache->MakeRoom(batch, &victims, &victim_rows).ok());
        cache->DropVictims();
        cache->Insert(keys.data(), rows.data(), batch, true, taken.data());
        CHECK_EQ(std::count(taken.begin(), taken.end(), 0), 0);
      }
      CHECK_EQ(cache->size(), capacity);
      CHECK(pages.ResidentBytes() <= cache->bytes());
      // And what is paid for is used.
      if (budget > 1 << 21) CHECK(capacity * (width + 34) > budget * 9 / 10);
    }
  }
  std::unique_ptr<HostCache> cache;
  const Status status = HostCache::Open({4096, 4000}, &cache);
  CHECK_EQ(status.kind(), StatusKind::kInvalidArgument);
  CHECK(cache == nullptr);
}

TEST(NoMemoryAtOpen) {
  int failures = 0;
  for (int64_t n = 0;; ++n) {
    CountedPages pages;
    pages.FailAfter(n);
    std::unique_ptr<HostCache> cache;
    const Status status = HostCache::Open({64, 8 << 20}, &cache, &pages);
    if (status.ok()) break;
    CHECK_EQ(status.kind(), StatusKind::kNoMemory);
    CHECK_EQ(pages.num_maps(), 0);
    ++failures;
  }
  CHECK(failures > 4);
}

// Hits of a cache that keeps the least recently used rows, the usual choice.
int64_t HitsOfLru(const std::vector<uint64_t>& ids, int64_t capacity) {
  std::list<uint64_t> order;
  std::map<uint64_t, std::list<uint64_t>::iterator> where;
  int64_t hits = 0;
  for (const uint64_t id : ids) {
    const auto it = where.find(id);
    if (it != where.end()) {
      ++hits;
      order.erase(it->second);
    } else if (static_cast<int64_t>(where.size()) == capacity) {
      where.erase(order.back());
      order.pop_back();
    }
    order.push_front(id);
    where[id] = order.begin();
  }
  return hits;
}

TEST(HitsMoreOftenThanLeastRecentlyUsed) {
  const auto cache = OpenCache(1000);
  std::mt19937_64 random(1);
  std::vector<uint64_t> ids;
  constexpr double kIds = 20000;  // Zipf's law, exponent near 0.9
  for (int i = 0; i < 100000; ++i) {
    const double u = static_cast<double>(random() >> 11) * 0x1p-53;
    const double rank =
        std::pow(1.0 + u * (std::pow(kIds, 0.1) - 1.0), 1.0 / 0.1);
    ids.push_back(static_cast<uint64_t>(rank));
  }
  for (const uint64_t id : ids) {
    const Key key = {id, 0};
    std::string row(kWidth, '\0');
    uint8_t found = 0;
    cache->Fetch(&key, 1, row.data(), &found);
    if (found == 0) Fill(cache.get(), id, 1);
  }
  const HostCacheStats stats = cache->stats();
  CHECK_EQ(stats.hits + stats.misses, 100000);
  CHECK_EQ(stats.evictions, stats.misses - cache->size());
  CHECK_EQ(stats.write_backs, 0);
  const int64_t lru = HitsOfLru(ids, cache->capacity());
  CHECK(stats.hits > lru + lru / 20);
}

TEST(ReadersMayShare) {
  const auto cache = OpenCache(2000);
  Fill(cache.get(), 0, 2000);
  Keys keys(2000);
  for (uint64_t i = 0; i < 2000; ++i) keys[i] = {i, 0};
  const uint64_t batch = cache->BeginBatch();
  const uint64_t later = cache->BeginBatch();
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::string rows(keys.size() * kWidth, '\0');
      std::vector<uint8_t> found(keys.size());
      for (int i = 0; i < 10; ++i) {
        if (t == 3) {
          cache->Peek(keys.data(), 2000, rows.data(), found.data());
        } else {
          cache->Fetch(keys.data(), 2000, rows.data(), found.data(),
                       t == 1 ? later : batch);
        }
        if (std::count(found.begin(), found.end(), 1) != 2000) ++wrong;
        if (rows != std::string(rows.size(), 'r')) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK_EQ(wrong.load(), 0);
  CHECK_EQ(cache->stats().hits, 3 * 10 * 2000);
  // Whoever came last, the later batch holds the rows.
  cache->EndBatch(batch);
  Fill(cache.get(), 50000, 1000);
  CHECK_EQ(CountHere(*cache, 0, 2000),
           2000 - std::max<int64_t>(0, 2000 - cache->capacity()));
}

}  // namespace
}  // namespace oneemb
