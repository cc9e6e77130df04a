// What the host does to whole tables.
#include "cpu/table_ops.h"

#include <random>
#include <vector>

#include "check.h"
#include "test_table.h"
#include "threads.h"

namespace oneemb {
namespace {

TEST(GrowingKeepsEveryRowInItsSlot) {
  TestParallel parallel(2);
  TestTable small(3, 500, OptimizerKind::kAdagrad);
  TestTable large(3, 1300, OptimizerKind::kAdagrad);
  std::vector<uint64_t> ids;
  std::mt19937_64 random(8);
  for (int i = 0; i < 500; ++i) ids.push_back(random());
  Batch batch(ids);
  batch.gradients.assign(1500, 0.5F);
  const Seen fresh = small.Read(&parallel, batch);
  small.Train(&parallel, {&batch}, {&fresh});
  CHECK_EQ(small.counter(kRows), 500U);
  const Seen before = small.Read(&parallel, batch);
  GrowTable(&parallel, small.View(), large.View());
  const Seen after = large.Read(&parallel, batch);
  CHECK(after.slots == before.slots);
  CHECK(after.activations == before.activations);
}

TEST(RowsWrittenAreRowsRead) {
  TestParallel parallel(1);
  TestTable table(2, 3, OptimizerKind::kRowwiseAdagrad, 2);
  const Batch batch({1, 1, 2, 3, 4}, {0, 1, 0, 7, 1});
  const TableView view = table.View();
  std::vector<uint32_t> words;
  const auto size = static_cast<size_t>(batch.size() * view.row_words);
  for (size_t i = 0; i < size; ++i) {
    words.push_back(static_cast<uint32_t>(i + 1));
  }
  WriteRows(view, table.rules(), batch.View(), words.data(), 6);
  CHECK_EQ(table.counter(kRows), 3U);       // (0, 1), (1, 1), (0, 2)
  CHECK_EQ(table.counter(kBadTables), 1U);  // table 7
  CHECK_EQ(table.counter(kOverflows), 1U);  // (1, 4)
  CHECK_EQ(table.clock()[2], 6U);
  std::vector<uint32_t> read(size);
  std::vector<int32_t> slots(5);
  ReadRows(&parallel, view, table.rules(), batch.View(), read.data(),
           slots.data());
  CHECK(slots == (std::vector<int32_t>{0, 1, 2, kSlotBadTable, kSlotMissing}));
  const auto row_words = static_cast<size_t>(view.row_words);
  for (size_t i = 0; i < 3 * row_words; ++i) CHECK_EQ(read[i], words[i]);
  for (size_t i = 0; i < row_words; ++i) CHECK_EQ(read[3 * row_words + i], 0U);
}

}  // namespace
}  // namespace oneemb
