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

std::vector<int32_t> ProbeAll(const IndexView& index, const Batch& batch,
                              int64_t* hints) {
  const KeyRules rules{1, false, false, 0};
  const IdsView ids = batch.View();
  std::vector<int32_t> slots(static_cast<size_t>(batch.size()), kSlotUnknown);
  int64_t next = 0;
  Probe(
      index, rules, ids, {0, ids.size}, [hints](int32_t) { ++*hints; },
      [&](const ProbeItem& item) {
        CHECK_EQ(item.position, next++);
        slots[static_cast<size_t>(item.position)] = item.slot;
      });
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
  int64_t hints = 0;
  const std::vector<int32_t> slots = ProbeAll(index, batch, &hints);
  CHECK_EQ(hints, batch.size());
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

}  // namespace
}  // namespace oneemb
