// The index against a map.
#include "core/bucket.h"

#include <map>
#include <random>
#include <utility>
#include <vector>

#include "check.h"
#include "cpu/insert.h"

namespace oneemb {
namespace {

class Index {
 public:
  explicit Index(int64_t capacity)
      : buckets_(static_cast<size_t>(NumBuckets(capacity))) {}

  IndexView View() {
    return {buckets_.data(), static_cast<int64_t>(buckets_.size())};
  }

 private:
  std::vector<Bucket> buckets_;
};

int32_t Find(const IndexView& index, Key key) {
  return FindSlot(index, key, HashKey(key));
}

// What the search on a GPU relies on: an entry that is free looks like this
// key, and is taken for one whose tag is 1.
TEST(NoKeyIsTakenForAFreeEntry) {
  CHECK_EQ(Bucket{}.ids[0], 0U);
  CHECK(HashTag(HashKey({0, 0})) != 1);
}

// Values of the reference implementation of XXH64 for 8-byte inputs. They may
// never change: they decide which shard owns an id, in OneFlow's files too.
TEST(Xxh64IsTheReference) {
  CHECK_EQ(Xxh64(0, 0), 0x34C96ACDCADB1BBBULL);
  CHECK_EQ(Xxh64(1, 0), 0x9F29CB17A2A49995ULL);
  CHECK_EQ(Xxh64(0, 1), 0x22C76AFD15F0110FULL);
  CHECK_EQ(Xxh64(~uint64_t{0}, 1), 0x0AD7F61289875125ULL);
}

TEST(FillsToTheLastRowAndFindsEverything) {
  for (const int64_t capacity : {1, 3, 4, 5, 64, 1000, 50000}) {
    Index index(capacity);
    InsertCursor cursor{index.View(), capacity, 0, 0};
    std::mt19937_64 random(static_cast<uint64_t>(capacity));
    std::map<std::pair<uint64_t, int>, int32_t> model;
    while (static_cast<int64_t>(model.size()) < capacity) {
      const Key key{random() % 4 == 0 ? random() % 100 : random(),
                    static_cast<uint16_t>(random() % 3)};
      const int32_t slot = FindOrInsert(&cursor, key, HashKey(key));
      const auto [it, fresh] =
          model.try_emplace({key.id, key.table}, cursor.num_rows - 1);
      CHECK_EQ(slot, it->second);
    }
    for (const auto& [key, slot] : model) {
      CHECK_EQ(
          Find(index.View(), {key.first, static_cast<uint16_t>(key.second)}),
          slot);
    }
    const Key one_more{0xDEADBEEF, 9};
    CHECK_EQ(FindOrInsert(&cursor, one_more, HashKey(one_more)), kSlotMissing);
    CHECK_EQ(cursor.num_rows, capacity);
    CHECK_EQ(Find(index.View(), one_more), kSlotMissing);
  }
}

TEST(EveryIdIsLegal) {
  Index index(8);
  InsertCursor cursor{index.View(), 8, 0, 0};
  const std::vector<Key> keys = {
      {0, 0}, {~uint64_t{0}, 0}, {0, 65535}, {~uint64_t{0}, 65535}};
  for (const Key key : keys) CHECK_EQ(Find(index.View(), key), kSlotMissing);
  int32_t slot = 0;
  for (const Key key : keys) {
    CHECK_EQ(FindOrInsert(&cursor, key, HashKey(key)), slot++);
  }
  slot = 0;
  for (const Key key : keys) CHECK_EQ(Find(index.View(), key), slot++);
}

TEST(SearchOfAFullIndexEnds) {
  std::vector<Bucket> buckets(1);
  const IndexView index{buckets.data(), 1};
  for (int32_t i = 0; i < kBucketEntries; ++i) {
    const Key key{static_cast<uint64_t>(i), 0};
    CHECK(InsertKey(index, key, HashKey(key), i));
  }
  const Key key{99, 0};
  CHECK(!InsertKey(index, key, HashKey(key), 4));
  CHECK_EQ(Find(index, key), kSlotMissing);
}

TEST(LayoutVersionTellsHistoriesApart) {
  Index a(8);
  Index b(8);
  InsertCursor first{a.View(), 8, 0, 0};
  InsertCursor second{b.View(), 8, 0, 0};
  const Key x{1, 0};
  const Key y{2, 0};
  FindOrInsert(&first, x, HashKey(x));
  FindOrInsert(&first, y, HashKey(y));
  FindOrInsert(&second, y, HashKey(y));
  CHECK(first.layout_version != second.layout_version);
  FindOrInsert(&second, x, HashKey(x));
  CHECK(first.layout_version != second.layout_version);
  const uint64_t before = first.layout_version;
  FindOrInsert(&first, x, HashKey(x));
  CHECK_EQ(first.layout_version, before);
}

}  // namespace
}  // namespace oneemb
