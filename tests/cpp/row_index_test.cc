// The index against a map, after every step.
#include "store/row_index.h"

#include <atomic>
#include <map>
#include <memory>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "check.h"
#include "counted_pages.h"
#include "store/hash_inverse.h"
#include "store/index_shard.h"

namespace oneemb {
namespace {

// What the smallest shards can hold: nothing but keys makes them grow.
constexpr uint64_t kMaxLocation = uint64_t{1} << 24;

using Keys = std::vector<Key>;
using Locations = std::vector<uint64_t>;
using Model = std::map<Key, uint64_t>;

int64_t Size(const Keys& keys) { return static_cast<int64_t>(keys.size()); }

Locations Find(const RowIndex& index, const Keys& keys) {
  Locations locations(keys.size());
  index.Find(keys.data(), Size(keys), locations.data());
  return locations;
}

Locations Put(RowIndex* index, const Keys& keys, const Locations& locations,
              uint64_t max_location = kMaxLocation) {
  CHECK(index->Reserve(keys.data(), Size(keys), max_location).ok());
  Locations old(keys.size());
  index->Put(keys.data(), locations.data(), Size(keys), old.data());
  return old;
}

Locations Erase(RowIndex* index, const Keys& keys) {
  Locations old(keys.size());
  index->Erase(keys.data(), Size(keys), old.data());
  return old;
}

uint64_t Lookup(const Model& model, Key key) {
  const auto it = model.find(key);
  return it == model.end() ? kNoLocation : it->second;
}

Model ScanAll(const RowIndex& index, int64_t chunk) {
  Model found;
  Keys keys(static_cast<size_t>(chunk));
  Locations locations(keys.size());
  uint64_t cursor = 0;
  while (true) {
    const int64_t n = index.Scan(&cursor, chunk, keys.data(), locations.data());
    CHECK(n <= chunk);
    if (n == 0) return found;
    for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
      CHECK(found.emplace(keys[i], locations[i]).second);  // met once
    }
  }
}

void CheckEqual(const RowIndex& index, const Model& model) {
  CHECK_EQ(index.size(), static_cast<int64_t>(model.size()));
  CHECK(ScanAll(index, 7) == model);
  Keys keys;
  for (const auto& [key, location] : model) keys.push_back(key);
  const Locations locations = Find(index, keys);
  for (size_t i = 0; i < keys.size(); ++i) {
    CHECK_EQ(locations[i], model.at(keys[i]));
  }
}

// What keys a test draws.
using Draw = Key (*)(std::mt19937_64*);

Key AnyKey(std::mt19937_64* random) {
  return {(*random)(), static_cast<uint16_t>((*random)())};
}
Key FewKeys(std::mt19937_64* random) {
  return {(*random)() % 300, static_cast<uint16_t>((*random)() % 3)};
}
Key EdgeKey(std::mt19937_64* random) {
  constexpr uint64_t kIds[] = {0, 1, ~uint64_t{0}, ~uint64_t{0} - 1,
                               uint64_t{1} << 63};
  constexpr uint16_t kTables[] = {0, 1, 65534, 65535};
  return {kIds[(*random)() % 5], kTables[(*random)() % 4]};
}
Key SameLowBits(std::mt19937_64* random) {
  return {((*random)() % 5000) << 40, 0};
}
// One shard of the index takes them all.
Key SameHashTop(std::mt19937_64* random) {
  const auto table = static_cast<uint16_t>((*random)() % 4);
  const uint64_t hash = (*random)() % 5000;
  return {Xxh64Inverse(hash, kIndexSeed + table), table};
}
// One hash for all: one home bucket, however large the index.
Key SameHash(std::mt19937_64* random) {
  const auto table = static_cast<uint16_t>((*random)() % 5000);
  return {Xxh64Inverse(12345, kIndexSeed + table), table};
}

// One random batch against index and model.
void Step(RowIndex* index, Model* model, Draw draw, std::mt19937_64* random) {
  Keys keys((*random)() % 64);
  Locations locations(keys.size());
  Locations from(keys.size());
  for (size_t i = 0; i < keys.size(); ++i) {
    keys[i] = draw(random);
    locations[i] = (*random)() % kMaxLocation;
    from[i] = (*random)() % 2 == 0 ? Lookup(*model, keys[i])
                                   : (*random)() % kMaxLocation;
  }
  const uint64_t kind = (*random)() % 4;
  if (kind <= 1) {
    const Locations old = Put(index, keys, locations);
    for (size_t i = 0; i < keys.size(); ++i) {
      CHECK_EQ(old[i], Lookup(*model, keys[i]));
      (*model)[keys[i]] = locations[i];
    }
  } else if (kind == 2) {
    const Locations old = Erase(index, keys);
    for (size_t i = 0; i < keys.size(); ++i) {
      CHECK_EQ(old[i], Lookup(*model, keys[i]));
      model->erase(keys[i]);
    }
  } else {
    std::vector<uint8_t> moved(keys.size());
    index->Move(keys.data(), from.data(), locations.data(), Size(keys),
                moved.data());
    for (size_t i = 0; i < keys.size(); ++i) {
      const bool there =
          Lookup(*model, keys[i]) == from[i] && from[i] != kNoLocation;
      CHECK_EQ(moved[i] != 0, there);
      if (there) (*model)[keys[i]] = locations[i];
    }
  }
  const Locations found = Find(*index, keys);
  for (size_t i = 0; i < keys.size(); ++i) {
    CHECK_EQ(found[i], Lookup(*model, keys[i]));
  }
}

void RunAgainstModel(Draw draw, uint64_t seed, int steps) {
  std::mt19937_64 random(seed);
  RowIndex index;
  Model model;
  CheckEqual(index, model);
  for (int step = 0; step < steps; ++step) {
    Step(&index, &model, draw, &random);
    if (step % 16 == 0) CheckEqual(index, model);
  }
  CheckEqual(index, model);
  index.Clear();
  CheckEqual(index, {});
}

TEST(AnyKeysAreAMap) { RunAgainstModel(&AnyKey, 1, 500); }
TEST(FewKeysAreAMap) { RunAgainstModel(&FewKeys, 2, 1000); }
TEST(EdgesAreAMap) { RunAgainstModel(&EdgeKey, 3, 300); }
TEST(SameLowBitsAreAMap) { RunAgainstModel(&SameLowBits, 4, 500); }
TEST(OneShardIsAMap) { RunAgainstModel(&SameHashTop, 5, 800); }
TEST(OneHashIsAMap) { RunAgainstModel(&SameHash, 6, 800); }

// The keys of the tests above do collide.
TEST(DrawnKeysShareTheirHash) {
  std::mt19937_64 random(7);
  for (int i = 0; i < 100; ++i) {
    CHECK_EQ(HashKey(SameHash(&random)), 12345U);
    CHECK(HashKey(SameHashTop(&random)) < 5000);
  }
}

TEST(HashInverseGoesBack) {
  std::mt19937_64 random(8);
  for (int i = 0; i < 10000; ++i) {
    const uint64_t id =
        i < 2 ? uint64_t{0} - static_cast<uint64_t>(i) : random();
    const uint64_t seed =
        random() % 2 == 0 ? kIndexSeed + random() % 65536 : random();
    CHECK_EQ(Xxh64Inverse(Xxh64(id, seed), seed), id);
    CHECK_EQ(Xxh64(Xxh64Inverse(id, seed), seed), id);
  }
}

// Values of the reference implementation of XXH64, with seed 0x10000 + table.
// No file depends on them, but nobody should change them unawares.
TEST(HashIsTheReference) {
  CHECK_EQ(HashKey({0, 0}), 0x302187334D70F3A0ULL);
  CHECK_EQ(HashKey({1, 0}), 0xF1B3197492B65782ULL);
  CHECK_EQ(HashKey({0, 65535}), 0x7AB1CDB5916586D9ULL);
  CHECK_EQ(HashKey({~uint64_t{0}, 65535}), 0xCE25D4E97E728BB9ULL);
}

// A shard takes 94 % without a stash, whatever its size.
TEST(ShardsFillToTheirMark) {
  for (const int64_t buckets : {4, 5, 8, 17, 64, 1000, 4096, 20011}) {
    for (uint64_t seed = 0; seed < 20; ++seed) {
      std::mt19937_64 random(seed);
      IndexShard empty(56);
      IndexShard shard(56);
      std::vector<ShardEntry> left_over;
      CHECK(empty.CopyTo(PageSource::System(), buckets, &shard, &left_over));
      const int64_t most = IndexShard::MostKeys(buckets);
      int64_t refused = 0;
      for (int64_t i = 0; i < most; ++i) {
        const ShardKey key = {random() >> 8, static_cast<uint16_t>(random())};
        if (!shard.Insert(key, 0)) ++refused;
      }
      CHECK_EQ(shard.size(), most - refused);
      CHECK(refused <= (buckets < 100 ? 3 : 0));
      if (buckets > 1000) break;
    }
  }
}

TEST(TakesSixteenBytesAKeyAtMost) {
  RowIndex index;
  std::mt19937_64 random(9);
  constexpr size_t kBatch = 20000;
  for (int batch = 0; batch < 60; ++batch) {
    Keys keys(kBatch);
    for (Key& key : keys) key = AnyKey(&random);
    const int64_t promised =
        index.BytesAfterReserve(keys.data(), Size(keys), kMaxLocation);
    Put(&index, keys, Locations(kBatch, 5));
    CHECK(index.bytes() <= promised);
    if (batch < 20) continue;
    // Without what is set aside for one batch.
    const int64_t stash = int64_t{kBatch} * 40;
    CHECK(index.bytes() - stash <= index.size() * 16);
  }
}

TEST(LargeLocationsMakeRoomForThemselves) {
  RowIndex index;
  Model model;
  std::mt19937_64 random(10);
  for (const int bits : {1, 20, 27, 30, 33, 36}) {
    const uint64_t max_location = uint64_t{1} << bits;
    Keys keys;
    Locations locations;
    for (int i = 0; i < 500; ++i) {
      keys.push_back(AnyKey(&random));
      locations.push_back(max_location - 1 - random() % 2);
      model[keys.back()] = locations.back();
    }
    const int64_t promised =
        index.BytesAfterReserve(keys.data(), Size(keys), max_location);
    Put(&index, keys, locations, max_location);
    CHECK(index.bytes() <= promised);
    CheckEqual(index, model);
    // Keys of before may move that far too.
    const Key first = model.begin()->first;
    const uint64_t from = model.begin()->second;
    const uint64_t to = max_location - 1;
    uint8_t moved = 0;
    index.Move(&first, &from, &to, 1, &moved);
    CHECK_EQ(moved, 1);
    model[first] = to;
    CheckEqual(index, model);
  }
  const Key key = {1, 1};
  const Status status =
      index.Reserve(&key, 1, (uint64_t{1} << kMostLocationBits) + 1);
  CHECK_EQ(status.kind(), StatusKind::kInvalidArgument);
  CheckEqual(index, model);
}

TEST(ReservedRowsNeedNoMoreMemory) {
  RowIndex index;
  constexpr int64_t kRows = 50000;
  CHECK(index.ReserveRows(kRows, kMaxLocation).ok());
  const int64_t before = index.bytes();
  std::mt19937_64 random(11);
  Keys keys(kRows);
  for (Key& key : keys) key = AnyKey(&random);
  Put(&index, keys, Locations(kRows, 1));
  CHECK(index.bytes() <= before + kRows * 40);  // the stash of one batch
  CHECK_EQ(index.size(), kRows);
}

TEST(MovesAsAWhole) {
  RowIndex a;
  Put(&a, {{7, 1}}, {42});
  RowIndex b = std::move(a);
  CheckEqual(b, {{{7, 1}, 42}});
  RowIndex c;
  Put(&c, {{8, 1}}, {43});
  c = std::move(b);
  CheckEqual(c, {{{7, 1}, 42}});
}

// The n-th allocation fails, for every n until none does.
TEST(NoMemoryChangesNothing) {
  int failures = 0;
  for (int64_t n = 0;; n += 37) {
    CountedPages pages;
    pages.FailAfter(n);
    {
      RowIndex index(&pages);
      Model model;
      std::mt19937_64 random(12);
      bool failed = false;
      for (int batch = 0; batch < 20 && !failed; ++batch) {
        Keys keys(200);
        Locations locations(keys.size());
        for (size_t i = 0; i < keys.size(); ++i) {
          keys[i] = AnyKey(&random);
          locations[i] = random() % kMaxLocation;
        }
        const Status status =
            index.Reserve(keys.data(), Size(keys), kMaxLocation);
        failed = !status.ok();
        if (failed) {
          CHECK_EQ(status.kind(), StatusKind::kNoMemory);
          CheckEqual(index, model);
          pages.FailAfter(-1);
        }
        Put(&index, keys, locations);
        for (size_t i = 0; i < keys.size(); ++i) {
          model[keys[i]] = locations[i];
        }
        CheckEqual(index, model);
      }
      failures += failed ? 1 : 0;
      if (!failed) {
        CHECK(failures > 10);
        return;
      }
    }
    CHECK_EQ(pages.num_maps(), 0);
  }
}

// Readers at the same time as each other, and writers of different parts.
TEST(PartsAreIndependent) {
  RowIndex index;
  std::mt19937_64 random(13);
  Keys keys(20000);
  for (Key& key : keys) key = AnyKey(&random);
  CHECK(index.Reserve(keys.data(), Size(keys), kMaxLocation).ok());
  constexpr int kThreads = 4;
  std::atomic<int> wrong{0};
  const auto on_all_threads = [&](const auto& body) {
    std::vector<std::thread> threads;
    for (int t = 0; t < kThreads; ++t) threads.emplace_back(body, t);
    for (std::thread& thread : threads) thread.join();
  };
  on_all_threads([&](int t) {
    Keys mine;
    for (const Key key : keys) {
      if (RowIndex::PartOf(key) % kThreads == t) mine.push_back(key);
    }
    Locations old(mine.size());
    std::vector<uint8_t> moved(mine.size());
    const Locations one(mine.size(), 1);
    const Locations two(mine.size(), 2);
    index.Put(mine.data(), one.data(), Size(mine), old.data());
    index.Move(mine.data(), one.data(), two.data(), Size(mine), moved.data());
    index.Erase(mine.data(), Size(mine) / 2, old.data());
  });
  on_all_threads([&](int) {
    const Locations found = Find(index, keys);
    int64_t there = 0;
    for (const uint64_t location : found) {
      if (location != 2 && location != kNoLocation) ++wrong;
      there += location == 2 ? 1 : 0;
    }
    if (there != index.size()) ++wrong;
  });
  CHECK_EQ(wrong.load(), 0);
  CHECK(index.size() >= Size(keys) / 2);
}

}  // namespace
}  // namespace oneemb
