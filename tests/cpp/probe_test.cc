// Searches for many keys at once say what one search after another says.
#include "cpu/probe.h"

#include <algorithm>
#include <random>
#include <vector>

#include "check.h"
#include "test_table.h"

namespace oneemb {
namespace {

// An index whose entries are all in use, unless fewer keys are asked for.
std::vector<Bucket> FilledIndex(int64_t num_buckets, int64_t num_keys,
                                std::mt19937_64* random,
                                std::vector<uint64_t>* ids) {
  std::vector<Bucket> buckets(static_cast<size_t>(num_buckets));
  const IndexView index{buckets.data(), num_buckets};
  for (int32_t slot = 0; slot < num_keys; ++slot) {
    ids->push_back((*random)());
    const Key key{ids->back(), 0};
    CHECK(InsertKey(index, key, HashKey(key), slot));
  }
  return buckets;
}

constexpr KeyRules kRules{1, false, false, 0};

std::vector<int32_t> ProbeRange(const IndexView& index, const KeyRules& rules,
                                const Batch& batch, Range range) {
  std::vector<int32_t> slots;
  std::vector<int32_t> hints;
  Probe(
      index, rules, batch.View(), range,
      [&hints](int32_t slot) { hints.push_back(slot); },
      [&](const ProbeItem& item) {
        CHECK_EQ(item.position,
                 range.begin + static_cast<int64_t>(slots.size()));
        slots.push_back(item.slot);
      });
  CHECK(hints == slots);
  CHECK_EQ(slots.size(), range.end - range.begin);
  return slots;
}

void CheckProbe(int64_t num_buckets, int64_t num_keys) {
  std::mt19937_64 random(static_cast<uint64_t>(num_buckets * 1000 + num_keys));
  std::vector<uint64_t> ids;
  std::vector<Bucket> buckets =
      FilledIndex(num_buckets, num_keys, &random, &ids);
  const IndexView index{buckets.data(), num_buckets};
  for (int i = 0; i < 100; ++i) ids.push_back(random());  // not there
  std::shuffle(ids.begin(), ids.end(), random);
  const Batch batch(ids);
  const std::vector<int32_t> slots =
      ProbeRange(index, kRules, batch, {0, batch.size()});
  int64_t found = 0;
  for (size_t i = 0; i < ids.size(); ++i) {
    const Key key{ids[i], 0};
    CHECK_EQ(slots[i], FindSlot(index, key, HashKey(key)));
    found += slots[i] >= 0 ? 1 : 0;
  }
  CHECK_EQ(found, num_keys);
}

// As full as an index can be, keys lie far from home and all around the end;
// of a few buckets, a search looks at some of them more than once.
TEST(KeysFarFromHomeAreFound) {
  for (const int64_t num_buckets : {1, 2, 3, 4, 5, 7, 64, 1000}) {
    for (const int64_t num_keys :
         {int64_t{0}, num_buckets * 16 / 5, num_buckets * 4}) {
      CheckProbe(num_buckets, num_keys);
    }
  }
}

// A key that found no room has gone past every bucket, so that no bucket says
// that a search may end.
TEST(SearchesEndThoughEveryBucketWasPassed) {
  for (const int64_t num_buckets : {1, 2, 3, 4, 5, 7, 8, 9}) {
    std::mt19937_64 random(static_cast<uint64_t>(num_buckets));
    std::vector<uint64_t> ids;
    std::vector<Bucket> buckets =
        FilledIndex(num_buckets, 4 * num_buckets, &random, &ids);
    const IndexView index{buckets.data(), num_buckets};
    const Key refused{random(), 0};
    CHECK(!InsertKey(index, refused, HashKey(refused), 0));
    ids.push_back(refused.id);
    const Batch batch(ids);
    const std::vector<int32_t> slots =
        ProbeRange(index, kRules, batch, {0, batch.size()});
    for (size_t i = 0; i + 1 < ids.size(); ++i) CHECK_EQ(slots[i], i);
    CHECK_EQ(slots.back(), kSlotMissing);
  }
}

TEST(PartsOfABatchWithIdsThatAreNoKeys) {
  std::mt19937_64 random(3);
  std::vector<uint64_t> ids;
  std::vector<Bucket> buckets = FilledIndex(50, 200, &random, &ids);
  const IndexView index{buckets.data(), 50};
  const KeyRules rules{2, true, true, ids[7]};  // two tables that share rows
  const Batch batch(ids, {0, 1, 2, 1, -1});
  for (const Range range : {Range{0, 0}, Range{3, 4}, Range{33, 97},
                            Range{199, 200}, Range{0, 200}}) {
    const std::vector<int32_t> slots = ProbeRange(index, rules, batch, range);
    for (int64_t i = range.begin; i < range.end; ++i) {
      const bool is_key = i % 5 != 2 && i % 5 != 4;
      const int64_t expected =
          i == 7 ? kSlotPadding : (is_key ? i : int64_t{kSlotBadTable});
      CHECK_EQ(slots[static_cast<size_t>(i - range.begin)], expected);
    }
  }
}

}  // namespace
}  // namespace oneemb
