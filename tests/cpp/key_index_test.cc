// Where keys of a batch are, against a map.
#include "store/key_index.h"

#include <map>
#include <random>
#include <vector>

#include "check.h"

namespace oneemb {
namespace {

KeySpan Span(const std::vector<Key>& keys) {
  return {keys.data(), static_cast<int64_t>(keys.size())};
}

// Ids that are near each other, far apart, or equal but for the table.
Key Draw(std::mt19937_64* random) {
  const uint64_t id = (*random)() % 3 == 0 ? (*random)() : (*random)() % 5000;
  return {id, static_cast<uint16_t>((*random)() % 3 * 0x7fff)};
}

TEST(FindsEachKeyAndNoOther) {
  for (const size_t count : {0, 1, 2, 3, 63, 64, 65, 1000, 40000}) {
    std::mt19937_64 random(count);
    std::vector<Key> keys;
    std::map<Key, int64_t> model;
    while (keys.size() < count) {
      const Key key = Draw(&random);
      if (!model.try_emplace(key, keys.size()).second) continue;
      keys.push_back(key);
    }
    const KeyIndex index(Span(keys));
    for (const auto& [key, position] : model) {
      CHECK_EQ(index.Find(key, HashKey(key)), position);
    }
    for (int i = 0; i < 10000; ++i) {
      const Key key = Draw(&random);
      const auto known = model.find(key);
      const int64_t position = known == model.end() ? -1 : known->second;
      CHECK_EQ(index.Find(key, HashKey(key)), position);
    }
  }
}

TEST(TellsTheFirstIdFromTheLast) {
  const std::vector<Key> keys{{0, 0}, {~uint64_t{0}, 0}, {0, 65535}};
  const KeyIndex index(Span(keys));
  for (size_t i = 0; i < keys.size(); ++i) {
    CHECK_EQ(index.Find(keys[i], HashKey(keys[i])), static_cast<int64_t>(i));
  }
  const Key other{~uint64_t{0}, 65535};
  CHECK_EQ(index.Find(other, HashKey(other)), int64_t{-1});
}

// Where half of a hash is the same, the key tells.
TEST(HalfOfAHashDoesNotDo) {
  const std::vector<Key> keys{{7, 0}};
  const KeyIndex index(Span(keys));
  CHECK_EQ(index.Find({8, 0}, HashKey(keys[0])), int64_t{-1});
}

}  // namespace
}  // namespace oneemb
