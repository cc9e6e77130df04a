// What a stage found serves lookups of the same ids in the same layout, and
// nobody else.
#include "tier/staged_batch.h"

#include <vector>

#include "check.h"
#include "test_cached.h"
#include "threads.h"

namespace oneemb {
namespace {

constexpr int64_t kDim = 3;
constexpr int64_t kSlots = 24;

Batch Ids(uint64_t first, uint64_t last) {
  std::vector<uint64_t> ids;
  for (uint64_t id = first; id <= last; ++id) ids.push_back(id);
  Batch batch(ids);
  batch.gradients.assign(static_cast<size_t>(batch.size() * kDim), 1.0F);
  return batch;
}

void Step(Parallel* parallel, TestCached* cached, const Batch& batch) {
  CHECK(Stage(parallel, cached->Now(), batch.View()));
  cached->Train(parallel, batch, cached->Read(parallel, batch));
}

// The arrays of a cached table as they were at one time.
class Kept {
 public:
  explicit Kept(const CachedTable& table)
      : table_(table),
        buckets_(table.view.index.buckets,
                 table.view.index.buckets + table.view.index.num_buckets),
        residency_(table.view.residency, table.view.residency + kSlots),
        layout_version_(*table.view.layout_version),
        generation_(*table.generation) {
    table_.view.index.buckets = buckets_.data();
    table_.view.residency = residency_.data();
    table_.view.layout_version = &layout_version_;
    table_.generation = &generation_;
  }
  Kept(const Kept&) = delete;
  Kept& operator=(const Kept&) = delete;

  const CachedTable& table() const { return table_; }

 private:
  CachedTable table_;
  std::vector<Bucket> buckets_;
  std::vector<SlotResidency> residency_;
  uint64_t layout_version_;
  uint32_t generation_;
};

// Whether all activations of position i are NaN.
bool IsNaN(const Seen& seen, size_t i) {
  for (size_t c = 0; c < kDim; ++c) {
    const float value = seen.activations[i * kDim + c];
    if (value == value) return false;
  }
  return true;
}

TEST(OtherIdsAreSearchedFor) {
  TestParallel parallel(2);
  TestCached cached(kDim, kSlots, OptimizerKind::kSgd, "ids",
                    std::make_shared<SimEnv>());
  TestTable plain(kDim, kSlots, OptimizerKind::kSgd);
  const Batch low = Ids(1, 10);
  for (const Batch& batch : {low, Ids(6, 15), Ids(11, 20)}) {
    Step(&parallel, &cached, batch);
    const Seen seen = plain.Read(&parallel, batch);
    plain.Train(&parallel, {&batch}, {&seen});
  }
  CHECK(Stage(&parallel, cached.Now(), low.View()));
  // As many ids, of which all or the last one differ; some in another order.
  std::vector<uint64_t> turned = {10, 9, 8, 7, 6, 5, 4, 3, 2, 1};
  std::vector<uint64_t> last = {1, 2, 3, 4, 5, 6, 7, 8, 9, 20};
  for (const Batch& batch : {low, Ids(11, 20), Batch(turned), Batch(last)}) {
    CHECK(cached.Read(&parallel, batch).activations ==
          plain.Read(&parallel, batch).activations);
  }
}

TEST(IdsThatWereStagedAreNotSearchedFor) {
  TestParallel parallel(1);
  TestCached cached(kDim, kSlots, OptimizerKind::kSgd, "again",
                    std::make_shared<SimEnv>());
  const Batch batch = Ids(1, 10);
  Step(&parallel, &cached, batch);
  CHECK(Stage(&parallel, cached.Now(), batch.View()));
  const Seen seen = cached.Read(&parallel, batch);
  // Were the second id in the slot of the first, as a search would not say:
  int32_t* const slots = cached.Now().store->staged()->slots();
  slots[1] = slots[0];
  const Seen other = cached.Read(&parallel, batch);
  CHECK_EQ(other.slots[1], seen.slots[0]);
  for (int64_t c = 0; c < kDim; ++c) {
    CHECK_EQ(other.activations[static_cast<size_t>(kDim + c)],
             seen.activations[static_cast<size_t>(c)]);
  }
}

TEST(OneOtherIdAmongManyIsSearchedFor) {
  constexpr uint64_t kIds = 3000;
  TestParallel parallel(2);
  TestCached cached(kDim, 2 * kIds, OptimizerKind::kSgd, "many",
                    std::make_shared<SimEnv>());
  TestTable plain(kDim, 2 * kIds, OptimizerKind::kSgd);
  const Batch batch = Ids(0, kIds - 1);
  const Batch others = Ids(kIds, 2 * kIds - 1);
  for (const Batch* b : {&batch, &others}) {
    Step(&parallel, &cached, *b);
    const Seen seen = plain.Read(&parallel, *b);
    plain.Train(&parallel, {b}, {&seen});
  }
  CHECK(Stage(&parallel, cached.Now(), batch.View()));
  for (uint64_t place = 0; place < kIds; place += 97) {
    Batch other = batch;
    other.words[2 * place] += kIds;
    CHECK(cached.Read(&parallel, other).activations ==
          plain.Read(&parallel, other).activations);
  }
}

TEST(OtherTablesAreSearchedFor) {
  TestParallel parallel(1);
  TestCached cached(kDim, kSlots, OptimizerKind::kSgd, "tables",
                    std::make_shared<SimEnv>());
  const Batch batch = Ids(1, 10);
  CHECK(Stage(&parallel, cached.Now(), batch.View()));
  Batch elsewhere = batch;
  elsewhere.table_ids = {1};  // of which there is none
  const Seen seen = cached.Read(&parallel, elsewhere);
  for (const int32_t slot : seen.slots) CHECK_EQ(slot, kSlotBadTable);
  for (size_t i = 0; i < 10; ++i) CHECK(IsNaN(seen, i));
}

TEST(ATableOfBeforeTheStageLacksItsKeys) {
  TestParallel parallel(1);
  TestCached cached(kDim, kSlots, OptimizerKind::kSgd, "before",
                    std::make_shared<SimEnv>());
  Step(&parallel, &cached, Ids(1, 10));
  const Kept before(cached.Now());
  const Batch batch = Ids(6, 15);
  CHECK(Stage(&parallel, cached.Now(), batch.View()));
  const Seen seen = cached.ReadAs(&parallel, batch, before.table());
  for (size_t i = 0; i < 10; ++i) CHECK_EQ(IsNaN(seen, i), i >= 5);
}

TEST(ATableOfBeforeTheUpdateReadsInitialRows) {
  TestParallel parallel(1);
  TestCached cached(kDim, kSlots, OptimizerKind::kSgd, "update",
                    std::make_shared<SimEnv>());
  TestTable plain(kDim, kSlots, OptimizerKind::kSgd);
  const Batch batch = Ids(1, 10);
  CHECK(Stage(&parallel, cached.Now(), batch.View()));
  const Kept before(cached.Now());
  cached.Train(&parallel, batch, cached.Read(&parallel, batch));
  CHECK(Stage(&parallel, cached.Now(), batch.View()));
  const Seen initial = plain.Read(&parallel, batch);
  CHECK(cached.ReadAs(&parallel, batch, before.table()).activations ==
        initial.activations);
  CHECK(cached.Read(&parallel, batch).activations != initial.activations);
}

TEST(ReservedSlotsAreCounted) {
  TestParallel parallel(1);
  TestCached cached(kDim, kSlots, OptimizerKind::kSgd, "reserved",
                    std::make_shared<SimEnv>());
  const auto reserved = [&] {
    int64_t count = 0;
    for (const SlotResidency& slot : cached.residency()) {
      count += slot.state == kSlotReserved ? 1 : 0;
    }
    return count;
  };
  const std::vector<uint32_t> rows(
      static_cast<size_t>(10 * cached.table().View().row_words));
  for (uint64_t first = 1; first < 100; first += 7) {
    const Batch batch = Ids(first, first + 9);
    CHECK(Stage(&parallel, cached.Now(), batch.View()));
    CHECK_EQ(cached.Now().store->reserved(), reserved());
    if (first % 3 == 0) {
      cached.Train(&parallel, batch, cached.Read(&parallel, batch));
    } else if (first % 3 == 1) {
      CHECK(
          WriteCachedRows(&parallel, cached.Now(), batch.View(), rows.data()));
    }
    CHECK_EQ(cached.Now().store->reserved(), reserved());
  }
}

}  // namespace
}  // namespace oneemb
