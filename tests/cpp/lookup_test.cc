// A lookup of many ids reads what lookups of single ids read, whatever the
// width of a row.
#include "cpu/lookup.h"

#include <algorithm>
#include <random>
#include <vector>

#include "check.h"
#include "test_table.h"
#include "threads.h"

namespace oneemb {
namespace {

constexpr int32_t kTables = 3;

std::vector<uint64_t> DrawIds(size_t count, std::mt19937_64* random) {
  std::vector<uint64_t> ids;
  while (ids.size() < count) ids.push_back((*random)() % 700);
  return ids;
}

TEST(ManyIdsReadAsOneByOne) {
  TestParallel parallel(2);
  std::mt19937_64 random(1);
  for (const int64_t dim : {1, 16, 32, 33, 64, 128}) {
    TestTable table(dim, 1500, OptimizerKind::kSgd, kTables);
    Batch known(DrawIds(1500, &random), {0, 1, 2});
    known.gradients.assign(static_cast<size_t>(known.size() * dim), 1.0F);
    const Seen fresh = table.Read(&parallel, known);
    table.Train(&parallel, {&known}, {&fresh});

    const std::vector<uint64_t> ids = DrawIds(6000, &random);
    const Seen all = table.Read(&parallel, Batch(ids, {0, 1, 2}));
    for (size_t i = 0; i < ids.size(); ++i) {
      const Batch single({ids[i]}, {static_cast<int32_t>(i % kTables)});
      const Seen one = table.Read(&parallel, single);
      CHECK_EQ(all.slots[i], one.slots[0]);
      CHECK(
          std::equal(one.activations.begin(), one.activations.end(),
                     all.activations.begin() + static_cast<int64_t>(i) * dim));
    }
    CHECK_EQ(all.counts[kLookupHits] + all.counts[kLookupMisses], ids.size());
    CHECK(all.counts[kLookupMisses] > 0);
  }
}

}  // namespace
}  // namespace oneemb
