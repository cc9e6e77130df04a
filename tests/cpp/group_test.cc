// Sorting by slot against std::stable_sort, for any number of threads.
#include "cpu/group.h"

#include <algorithm>
#include <random>
#include <vector>

#include "check.h"
#include "threads.h"

namespace oneemb {
namespace {

std::vector<SlotPosition> Expected(const std::vector<int32_t>& slots) {
  std::vector<SlotPosition> entries;
  for (size_t i = 0; i < slots.size(); ++i) {
    if (slots[i] < 0) continue;
    entries.push_back((static_cast<uint64_t>(slots[i]) << 32) | i);
  }
  std::sort(entries.begin(), entries.end());
  return entries;
}

std::vector<SlotPosition> Sorted(const std::vector<int32_t>& slots,
                                 int64_t num_slots, int64_t threads) {
  TestParallel parallel(threads);
  const auto n = static_cast<int64_t>(slots.size());
  std::vector<SlotPosition> a(slots.size() + 1);
  std::vector<SlotPosition> b(slots.size() + 1);
  int64_t count = 0;
  const SlotPosition* const entries = SortBySlot(
      &parallel, slots.data(), n, num_slots, a.data(), b.data(), &count);
  return {entries, entries + count};
}

TEST(SortsLikeTheStandardLibrary) {
  std::mt19937 random(1);
  for (const int64_t num_slots : {1, 2, 2048, 2049, 1 << 22, 2147483647}) {
    for (const size_t n : {0, 1, 1000, 100000}) {
      std::vector<int32_t> slots(n);
      for (int32_t& slot : slots) {
        slot = random() % 8 == 0 ? -1 - static_cast<int32_t>(random() % 3)
                                 : static_cast<int32_t>(random() % num_slots);
      }
      const std::vector<SlotPosition> wanted = Expected(slots);
      for (const int64_t threads : {1, 2, 8}) {
        CHECK(Sorted(slots, num_slots, threads) == wanted);
      }
    }
  }
}

TEST(EachGroupFallsIntoOneRange) {
  std::mt19937 random(2);
  std::vector<int32_t> slots(20000);
  for (int32_t& slot : slots) {
    slot = random() % 2 == 0 ? 7 : static_cast<int32_t>(random() % 50);
  }
  const std::vector<SlotPosition> entries = Sorted(slots, 50, 1);
  const auto count = static_cast<int64_t>(entries.size());
  for (const int64_t tasks : {1, 3, 64, 20000}) {
    int64_t next = 0;
    for (int64_t task = 0; task < tasks; ++task) {
      const Range range =
          AlignToGroups(entries.data(), count, TaskRange(count, task, tasks));
      CHECK_EQ(range.begin, next);
      next = range.end;
      for (int64_t i = range.begin; i < range.end;) {
        i = GroupEnd(entries.data(), i, count);
        CHECK(i <= range.end);
      }
    }
    CHECK_EQ(next, count);
  }
}

}  // namespace
}  // namespace oneemb
