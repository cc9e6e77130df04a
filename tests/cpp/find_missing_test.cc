// What a batch finds in the device tier, and which clocks it sets.
#include <algorithm>
#include <random>
#include <set>
#include <vector>

#include "check.h"
#include "core/counters.h"
#include "cpu/ids_digest.h"
#include "cpu/tier.h"
#include "test_table.h"
#include "threads.h"

namespace oneemb {
namespace {

constexpr int64_t kSlots = 180000;
constexpr int64_t kResident = 150000;  // ids [0, kResident) are in the tier

// A device tier with rows of different ages.
class Tier {
 public:
  Tier() : table_(1, kSlots, OptimizerKind::kSgd), residency_(kSlots) {
    view_ = table_.View();
    view_.residency = residency_.data();
    view_.counters[kSlotsUsed] = kResident;
    for (int32_t slot = 0; slot < kResident; ++slot) {
      AdmitKey(view_, {static_cast<uint64_t>(slot), 0}, slot, kSlotClean,
               kBegin + static_cast<uint32_t>(slot) % 7);
    }
  }
  Tier(const Tier&) = delete;
  Tier& operator=(const Tier&) = delete;

  static constexpr uint32_t kBegin = 0xFFFFFFFCU;  // clocks wrap around

  const TableView& view() const { return view_; }

 private:
  TestTable table_;
  std::vector<SlotResidency> residency_;
  TableView view_;
};

// Mostly hot ids that every thread meets, of which a few have no row.
std::vector<uint64_t> DrawIds(size_t count, std::mt19937_64* random) {
  std::vector<uint64_t> ids;
  while (ids.size() < count) {
    const uint64_t hot = (*random)() % 20;
    const uint64_t any = (*random)() % (kResident + kResident / 4);
    ids.push_back((*random)() % 2 == 0 ? hot : any);
  }
  return ids;
}

void CheckBatch(Parallel* parallel, const Tier& tier,
                const std::vector<uint64_t>& ids, uint32_t now) {
  const TableView& view = tier.view();
  std::vector<uint32_t> clocks(view.clock, view.clock + kSlots);
  std::vector<uint64_t> lacking;
  std::set<uint64_t> seen;
  int64_t touched = 0;
  for (const uint64_t id : ids) {
    if (!seen.insert(id).second) continue;
    if (id >= kResident) lacking.push_back(id);
    if (id >= kResident || !IsBefore(clocks[id], now)) continue;
    clocks[id] = now;
    ++touched;
  }

  const Batch batch(ids);
  const IdsView view_of_ids = batch.View();
  std::vector<IdsDigest> digests(static_cast<size_t>(NumDigests(batch.size())));
  std::vector<int32_t> slots(ids.size());
  std::vector<Key> missing;
  TierBatch found{digests.data(), slots.data(), -1, 0};
  CHECK(FindMissingAndTouch(parallel, view, {1, false, false, 0}, view_of_ids,
                            now, &missing, &found));
  for (int64_t i = 0; i < batch.size(); i += kDigestIds) {
    const Range block{i, std::min(i + kDigestIds, batch.size())};
    CHECK(digests[static_cast<size_t>(i / kDigestIds)] ==
          DigestIds(view_of_ids, block));
  }
  CHECK_EQ(found.touched, touched);
  CHECK_EQ(found.digest, DigestBatch(view_of_ids));
  for (size_t i = 0; i < ids.size(); ++i) {
    CHECK_EQ(slots[i],
             ids[i] < kResident ? static_cast<int32_t>(ids[i]) : kSlotMissing);
  }
  CHECK_EQ(missing.size(), lacking.size());
  for (size_t i = 0; i < lacking.size(); ++i) {
    CHECK_EQ(missing[i].id, lacking[i]);
  }
  CHECK(clocks == std::vector<uint32_t>(view.clock, view.clock + kSlots));
}

// Batches of few ids for the slots there are (4,200 of several tasks), and of
// many: clocks are set in two ways, with the same result on any threads.
TEST(EveryRowIsTouchedOnceUnlessItsClockIsLater) {
  std::mt19937_64 random(5);
  for (const int64_t threads : {1, 2, 8}) {
    TestParallel parallel(threads);
    const Tier tier;
    for (const size_t count : {0, 1, 100, 4200, 40000}) {
      for (uint32_t step = 0; step < 8; step += 3) {
        CheckBatch(&parallel, tier, DrawIds(count, &random),
                   Tier::kBegin + step);
      }
    }
  }
}

TEST(AnEmptyTierHasNothingToTouch) {
  TestParallel parallel(8);
  TestTable table(1, 64, OptimizerKind::kSgd);
  const Batch batch(std::vector<uint64_t>(20000, 5));
  std::vector<int32_t> slots(20000);
  std::vector<Key> missing;
  TierBatch found{nullptr, slots.data(), -1, 0};
  CHECK(FindMissingAndTouch(&parallel, table.View(), {1, false, false, 0},
                            batch.View(), 1, &missing, &found));
  CHECK_EQ(found.touched, 0);
  CHECK_EQ(missing.size(), 1U);
  CHECK(slots == std::vector<int32_t>(20000, kSlotMissing));
  CHECK(table.clock() == std::vector<uint32_t>(64));
}

TEST(PositionsThatAreNoKeysAreNeitherMissingNorTouched) {
  TestParallel parallel(2);
  const Tier tier;
  const KeyRules rules{1, false, true, 0};
  for (const int64_t size : {3, 30000}) {  // few and many for the slots
    std::vector<uint64_t> ids;
    for (int64_t i = 0; i < size; ++i) ids.push_back(i % 3 == 0 ? 0 : 1);
    const Batch batch(ids, {0, 0, 1});  // padding, a key, a bad table
    std::vector<int32_t> slots(ids.size());
    std::vector<Key> missing;
    TierBatch found{nullptr, slots.data(), -1, 0};
    CHECK(FindMissingAndTouch(&parallel, tier.view(), rules, batch.View(),
                              100 + static_cast<uint32_t>(size), &missing,
                              &found));
    CHECK_EQ(found.touched, 1);
    CHECK(missing.empty());
    CHECK_EQ(slots[0], kSlotPadding);
    CHECK_EQ(slots[1], 1);
    CHECK_EQ(slots[2], kSlotBadTable);
    CHECK_EQ(tier.view().clock[0], Tier::kBegin);
    CHECK_EQ(tier.view().clock[1], 100 + static_cast<uint32_t>(size));
  }
}

}  // namespace
}  // namespace oneemb
