// The cache over a map that plays the SSD tier: at every instant every row is
// in one of the two, in its newest form.
#include "store/host_cache.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <list>
#include <map>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "counted_pages.h"

namespace oneemb {
namespace {

using Keys = std::vector<Key>;
using Model = std::map<Key, std::string>;

constexpr int64_t kWidth = 24;

int64_t Size(const Keys& keys) { return static_cast<int64_t>(keys.size()); }

// A cache of about `rows` rows.
std::unique_ptr<HostCache> OpenCache(int64_t rows, int64_t width = kWidth,
                                     PageSource* pages = PageSource::System()) {
  std::unique_ptr<HostCache> cache;
  // Small arrays take whole lines and pages: try until there is room enough.
  for (int64_t budget = rows * (width + 31);; budget += 64) {
    const Status status = HostCache::Open({width, budget}, &cache, pages);
    if (status.ok() && cache->capacity() >= rows) return cache;
  }
}

std::string Peek(const HostCache& cache, Key key) {
  std::string row(kWidth, '\0');
  uint8_t found = 0;
  cache.Peek(&key, 1, row.data(), &found);
  return found != 0 ? row : "";
}

Keys RandomKeys(std::mt19937_64* random, uint64_t ids, size_t most) {
  Keys keys((*random)() % most);
  for (Key& key : keys) {
    const uint64_t id = (*random)() % ids;
    key = {id == 1 ? ~uint64_t{0} : id,
           static_cast<uint16_t>((*random)() % 2 == 0 ? 0 : 65535)};
  }
  return keys;
}

// A store of two tiers, with the protocol that one must follow.
class Store {
 public:
  explicit Store(int64_t rows, uint64_t seed)
      : cache_(OpenCache(rows)), random_(seed) {}

  void Put(const Keys& keys) {
    std::string rows;
    for (const Key key : keys) {
      std::string row(kWidth, '\0');
      for (char& c : row) c = static_cast<char>(random_());
      truth_[key] = row;
      rows += row;
    }
    int64_t missing = 0;
    for (const Key key : keys) missing += Peek(*cache_, key).empty() ? 1 : 0;
    CHECK_EQ(cache_->CountMissing(keys.data(), Size(keys)), missing);
    MakeRoom(missing);
    std::vector<uint8_t> taken(keys.size());
    cache_->Insert(keys.data(), rows.data(), Size(keys), true, taken.data());
    for (size_t i = 0; i < keys.size(); ++i) {
      if (taken[i] == 0) ssd_[keys[i]] = rows.substr(i * kWidth, kWidth);
    }
  }

  void Fetch(const Keys& keys, uint64_t batch = 0) {
    std::string rows(keys.size() * kWidth, '\0');
    std::vector<uint8_t> found(keys.size());
    cache_->Fetch(keys.data(), Size(keys), rows.data(), found.data(), batch);
    Keys missing;
    std::string missing_rows;
    for (size_t i = 0; i < keys.size(); ++i) {
      if (found[i] != 0) {
        CHECK(rows.substr(i * kWidth, kWidth) == truth_.at(keys[i]));
      } else if (truth_.count(keys[i]) != 0) {
        CHECK(ssd_.at(keys[i]) == truth_.at(keys[i]));
        missing.push_back(keys[i]);
        missing_rows += ssd_.at(keys[i]);
      }
    }
    MakeRoom(Size(missing));
    std::vector<uint8_t> taken(missing.size());
    cache_->Insert(missing.data(), missing_rows.data(), Size(missing), false,
                   taken.data(), batch);
  }

  void Erase(const Keys& keys) {
    cache_->Erase(keys.data(), Size(keys));
    for (const Key key : keys) {
      truth_.erase(key);
      ssd_.erase(key);
    }
  }

  // Where there is room.
  void PutOne(const Keys& keys) {
    for (const Key key : keys) {
      const std::string row(kWidth, static_cast<char>(random_()));
      uint8_t taken = 0;
      cache_->Insert(&key, row.data(), 1, true, &taken);
      truth_[key] = row;
      if (taken == 0) ssd_[key] = row;
    }
  }

  // Rows that somebody changes or removes while they are written.
  void MakeRoomWhileOthersWrite(int64_t n) {
    Keys victims;
    std::vector<char> rows;
    CHECK(cache_->MakeRoom(n, &victims, &rows).ok());
    Check();
    std::set<Key> erased;
    for (size_t i = 0; i < victims.size(); ++i) {
      const uint64_t what = random_() % 4;
      if (what == 0) {
        std::string row(kWidth, static_cast<char>(random_()));
        uint8_t taken = 0;
        cache_->Insert(&victims[i], row.data(), 1, true, &taken);
        CHECK_EQ(taken, 1);
        truth_[victims[i]] = row;
      } else if (what == 1) {
        Erase({victims[i]});
        erased.insert(victims[i]);
      } else if (what == 2 && !erased.empty()) {
        // Another row may get the slot of a victim that is gone.
        PutOne(RandomKeys(&random_, 1000000, 2));
      }
    }
    Finish(victims, rows, erased);
  }

  void Save() {
    uint64_t cursor = 0;
    constexpr int64_t kChunk = 9;
    Keys keys(kChunk);
    std::string rows(kChunk * kWidth, '\0');
    Model found;
    while (true) {
      const int64_t n =
          cache_->ScanDirty(&cursor, kChunk, keys.data(), rows.data());
      if (n == 0) break;
      for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
        CHECK(found.emplace(keys[i], rows.substr(i * kWidth, kWidth)).second);
      }
    }
    CHECK_EQ(cache_->dirty(), static_cast<int64_t>(found.size()));
    for (const auto& [key, row] : found) ssd_[key] = row;
    cache_->MarkClean();
    CHECK_EQ(cache_->dirty(), 0);
    CHECK(ssd_ == truth_);
  }

  void Clear() {
    cache_->Clear();
    CHECK_EQ(cache_->size(), 0);
    truth_ = ssd_;
  }

  // Every row, and nothing else, is there.
  void Check() const {
    CHECK(cache_->size() <= cache_->capacity());
    int64_t cached = 0;
    for (const auto& [key, row] : truth_) {
      const std::string here = Peek(*cache_, key);
      cached += here.empty() ? 0 : 1;
      CHECK((here.empty() ? ssd_.at(key) : here) == row);
    }
    CHECK_EQ(cache_->size(), cached);
  }

  HostCache* cache() { return cache_.get(); }
  Model* ssd() { return &ssd_; }
  std::mt19937_64* random() { return &random_; }

 private:
  void MakeRoom(int64_t n) {
    Keys victims;
    std::vector<char> rows;
    CHECK(cache_->MakeRoom(n, &victims, &rows).ok());
    Finish(victims, rows, {});
  }

  void Finish(const Keys& victims, const std::vector<char>& rows,
              const std::set<Key>& erased) {
    CHECK_EQ(rows.size(), victims.size() * kWidth);
    if (random_() % 4 == 0) {
      cache_->KeepVictims();  // the disk is full
      return;
    }
    for (size_t i = 0; i < victims.size(); ++i) {
      if (erased.count(victims[i]) != 0) continue;
      ssd_[victims[i]] = std::string(&rows[i * kWidth], kWidth);
    }
    cache_->DropVictims();
  }

  std::unique_ptr<HostCache> cache_;
  std::mt19937_64 random_;
  Model truth_;
  Model ssd_;
};

void RunAgainstModel(int64_t rows, uint64_t ids, uint64_t seed) {
  Store store(rows, seed);
  for (int step = 0; step < 400; ++step) {
    const Keys keys = RandomKeys(store.random(), ids, 30);
    switch ((*store.random())() % 16) {
      case 0:
        store.Erase(keys);
        break;
      case 1:
        store.Save();
        break;
      case 2:
      case 3:
        store.MakeRoomWhileOthersWrite(Size(keys));
        break;
      case 4:
        if (step % 5 == 0) store.Clear();
        break;
      case 5:
      case 6:
      case 7:
      case 8:
        store.Put(keys);
        break;
      default:
        store.Fetch(keys);
    }
    store.Check();
  }
}

TEST(EveryRowIsSomewhere) {
  uint64_t seed = 0;
  for (const int64_t rows : {1, 2, 3, 10, 40, 200, 1000}) {
    for (const uint64_t ids : {5U, 60U, 300U}) {
      RunAgainstModel(rows, ids, ++seed);
    }
  }
}

TEST(PeekChangesNothing) {
  Store a(20, 1);
  Store b(20, 1);
  for (int step = 0; step < 200; ++step) {
    const Keys keys = RandomKeys(a.random(), 60, 10);
    CHECK(RandomKeys(b.random(), 60, 10) == keys);
    step % 2 == 0 ? a.Put(keys) : a.Fetch(keys);
    step % 2 == 0 ? b.Put(keys) : b.Fetch(keys);
    for (uint64_t id = 0; id < 60; ++id) Peek(*b.cache(), {id, 0});
    // The same rows are left, so the same were taken for the least useful.
    for (uint64_t id = 0; id < 60; ++id) {
      CHECK(Peek(*a.cache(), {id, 0}) == Peek(*b.cache(), {id, 0}));
    }
  }
  CHECK_EQ(a.cache()->stats().hits, b.cache()->stats().hits);
  CHECK_EQ(a.cache()->stats().misses, b.cache()->stats().misses);
  CHECK_EQ(a.cache()->dirty(), b.cache()->dirty());
  CHECK(*a.ssd() == *b.ssd());
}

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
