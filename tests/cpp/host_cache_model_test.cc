// The cache over a map that plays the SSD tier: at every instant every row is
// in one of the two, in its newest form.
#include <algorithm>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "test_host_cache.h"

namespace oneemb {
namespace {

using Model = std::map<Key, std::string>;

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

}  // namespace
}  // namespace oneemb
