// Lookup and update without XLA: the same bits for any number of threads, and
// the promises about hints, full tables and refused updates.
#include "cpu/update.h"

#include <cstdint>
#include <random>
#include <vector>

#include "check.h"
#include "core/checksum.h"
#include "cpu/norm.h"
#include "test_table.h"
#include "threads.h"

namespace oneemb {
namespace {

Batch RandomBatch(std::mt19937_64* random, int64_t n, uint64_t most_ids,
                  int64_t dim) {
  std::vector<uint64_t> ids;
  for (int64_t i = 0; i < n; ++i) {
    // Half of the batch is one hot id.
    ids.push_back((*random)() % 2 == 0 ? 3 : (*random)() % most_ids);
  }
  Batch batch(ids);
  std::normal_distribution<float> normal;
  batch.gradients.resize(static_cast<size_t>(n * dim));
  for (float& g : batch.gradients) g = normal(*random);
  return batch;
}

// Trains for three steps and returns every bit that results.
std::vector<uint32_t> TrainedBits(OptimizerKind kind, int64_t dim,
                                  int64_t threads) {
  TestParallel parallel(threads);
  TestTable table(dim, 4000, kind);
  std::mt19937_64 random(11);
  for (int step = 0; step < 3; ++step) {
    const Batch batch = RandomBatch(&random, 9000, 3000, dim);
    const Seen seen = table.Read(&parallel, batch);
    table.Train(&parallel, {&batch}, {&seen});
  }
  std::vector<uint32_t> bits = table.rows();
  bits.insert(bits.end(), table.clock().begin(), table.clock().end());
  bits.push_back(static_cast<uint32_t>(table.layout_version()));
  return bits;
}

TEST(SameBitsForAnyNumberOfThreads) {
  for (const OptimizerKind kind :
       {OptimizerKind::kSgd, OptimizerKind::kAdagrad, OptimizerKind::kAdam,
        OptimizerKind::kRowwiseAdagrad, OptimizerKind::kLamb}) {
    for (const int64_t dim : {1, 17, 32}) {
      const std::vector<uint32_t> one = TrainedBits(kind, dim, 1);
      CHECK(TrainedBits(kind, dim, 2) == one);
      CHECK(TrainedBits(kind, dim, 8) == one);
    }
  }
}

TEST(HintsOfAnotherLayoutAreNotTrusted) {
  TestParallel parallel(2);
  TestTable table(4, 100, OptimizerKind::kSgd);
  TestTable other(4, 100, OptimizerKind::kSgd);
  Batch both({1, 2});
  Batch reversed({2, 1});
  both.gradients.assign(8, 0.0F);
  reversed.gradients.assign(8, 0.0F);
  const Seen fresh = table.Read(&parallel, both);
  table.Train(&parallel, {&both}, {&fresh});
  const Seen fresh_other = other.Read(&parallel, reversed);
  other.Train(&parallel, {&reversed}, {&fresh_other});
  // In `other` the two ids have each other's slots.
  const Seen wrong = other.Read(&parallel, both);
  CHECK(wrong.slots != table.Read(&parallel, both).slots);
  both.gradients = {1, 1, 1, 1, 0, 0, 0, 0};
  const Seen before = table.Read(&parallel, both);
  table.Train(&parallel, {&both}, {&wrong}, 1.0F);
  const Seen after = table.Read(&parallel, both);
  for (size_t c = 0; c < 4; ++c) {
    CHECK_EQ(after.activations[c], before.activations[c] - 1.0F);
    CHECK_EQ(after.activations[4 + c], before.activations[4 + c]);
  }
}

TEST(AFullTableAdmitsInOrderOfFirstOccurrence) {
  TestParallel parallel(2);
  TestTable table(1, 3, OptimizerKind::kSgd);
  Batch batch({9, 5, 9, 7, 4, 5, 8});
  batch.gradients.assign(7, 1.0F);
  const Seen seen = table.Read(&parallel, batch);
  table.Train(&parallel, {&batch}, {&seen}, 1.0F);
  CHECK_EQ(table.counter(kRows), 3U);
  CHECK_EQ(table.counter(kInserts), 3U);
  CHECK_EQ(table.counter(kOverflows), 2U);
  CHECK_EQ(table.counter(kMisses), 7U);
  const Seen after = table.Read(&parallel, batch);
  CHECK(after.slots == (std::vector<int32_t>{0, 1, 0, 2, -1, 1, -1}));
  // Refused ids still read their initial rows; 9 and 5 took two gradients.
  const float taken[] = {2, 2, 2, 1, 0, 2, 0};
  for (size_t i = 0; i < 7; ++i) {
    CHECK_EQ(after.activations[i], seen.activations[i] - taken[i]);
  }
}

TEST(RefusedUpdatesChangeNothing) {
  TestParallel parallel(2);
  TestTable table(4, 100, OptimizerKind::kAdam);
  std::mt19937_64 random(3);
  const Batch batch = RandomBatch(&random, 50, 50, 4);
  const Seen seen = table.Read(&parallel, batch);
  const std::vector<uint32_t> rows = table.rows();
  table.Train(&parallel, {&batch}, {&seen}, 0.1F, false);
  CHECK_EQ(table.counter(kMisses), 0U);
  table.Train(&parallel, {&batch}, {&seen}, -0.1F);
  table.Train(&parallel, {&batch}, {&seen}, NAN);
  CHECK_EQ(table.counter(kBadLearningRates), 2U);
  CHECK_EQ(table.counter(kRows), 0U);
  CHECK_EQ(table.step(), 0U);
  CHECK(table.rows() == rows);
}

TEST(ADamagedContextChangesNothing) {
  TestParallel parallel(2);
  TestTable table(4, 9000, OptimizerKind::kAdam);
  std::mt19937_64 random(3);
  const Batch batch = RandomBatch(&random, 9000, 5000, 4);
  const Seen fresh = table.Read(&parallel, batch);
  table.Train(&parallel, {&batch}, {&fresh});
  const Seen seen = table.Read(&parallel, batch);
  const std::vector<uint32_t> rows = table.rows();
  uint64_t refused = 0;
  for (const size_t place : {size_t{0}, size_t{4096}, size_t{8999}}) {
    for (const int32_t slot : {-1, 3, 4, 1000000, INT32_MAX, INT32_MIN}) {
      Seen damaged = seen;
      damaged.slots[place] = slot;
      table.Train(&parallel, {&batch}, {&damaged});
      refused += slot == seen.slots[place] ? 0 : 1;
    }
    Batch other = batch;
    other.words[2 * place] ^= 1U;
    table.Train(&parallel, {&other}, {&seen});
    CHECK_EQ(table.counter(kDamagedContexts), ++refused);
  }
  CHECK_EQ(table.step(), 1 + 3 * 7 - static_cast<uint32_t>(refused));
}

// Slots that a lookup vouches for but the table cannot have: the same layout
// version by chance, in a table with fewer rows.
TEST(SlotsOutsideOfTheTableAreSearchedAgain) {
  TestParallel parallel(2);
  TestTable table(4, 100, OptimizerKind::kSgd);
  Batch batch({1, 2});
  batch.gradients.assign(8, 1.0F);
  for (const int32_t slot : {2, INT32_MAX, -4, INT32_MIN}) {
    Seen seen = table.Read(&parallel, batch);
    seen.slots = {slot, slot};
    seen.counts[kLookupChecksum] =
        PositionChecksum(0, 1, 0, 0, slot) + PositionChecksum(1, 2, 0, 0, slot);
    table.Train(&parallel, {&batch}, {&seen});
  }
  CHECK_EQ(table.counter(kDamagedContexts), 0U);
  CHECK_EQ(table.counter(kRows), 2U);
  CHECK_EQ(table.step(), 4U);
}

TEST(ZerosAreNoContext) {
  for (uint32_t n = 1, sum = 0; n <= 100000; ++n) {
    sum += PositionChecksum(n - 1, 0, 0, 0, 0);
    CHECK(sum != 0);
  }
}

TEST(NonFiniteGradientsAreAppliedAndCounted) {
  TestParallel parallel(2);
  TestTable table(3, 10, OptimizerKind::kSgd);
  Batch batch({1, 1, 2});
  batch.gradients = {0, INFINITY, 0, 0, 0, NAN, 1, 1, 1};
  const Seen seen = table.Read(&parallel, batch);
  table.Train(&parallel, {&batch}, {&seen});
  CHECK_EQ(table.counter(kNonFinite), 2U);
  const Seen after = table.Read(&parallel, batch);
  CHECK_EQ(after.activations[1], -INFINITY);
  CHECK(std::isnan(after.activations[2]));
  CHECK(std::isfinite(after.activations[7]));
}

TEST(SeveralLookupsAreOneBatch) {
  TestParallel parallel(2);
  std::mt19937_64 random(5);
  const Batch first = RandomBatch(&random, 70, 40, 5);
  const Batch second = RandomBatch(&random, 90, 40, 5);
  Batch whole({});
  for (const Batch* part : {&first, &second}) {
    whole.words.insert(whole.words.end(), part->words.begin(),
                       part->words.end());
    whole.gradients.insert(whole.gradients.end(), part->gradients.begin(),
                           part->gradients.end());
  }
  TestTable split(5, 100, OptimizerKind::kAdagrad);
  TestTable joined(5, 100, OptimizerKind::kAdagrad);
  const Seen seen_first = split.Read(&parallel, first);
  const Seen seen_second = split.Read(&parallel, second);
  split.Train(&parallel, {&first, &second}, {&seen_first, &seen_second});
  const Seen seen = joined.Read(&parallel, whole);
  joined.Train(&parallel, {&whole}, {&seen});
  CHECK(split.rows() == joined.rows());
  CHECK_EQ(split.step(), 1U);
}

TEST(GlobalNormIsThatOfSummedRows) {
  std::mt19937_64 random(6);
  const Batch batch = RandomBatch(&random, 5000, 300, 8);
  std::vector<double> sums(300 * 8);
  for (int64_t i = 0; i < batch.size(); ++i) {
    for (int64_t c = 0; c < 8; ++c) {
      sums[batch.View().Id(i) * 8 + static_cast<size_t>(c)] +=
          static_cast<double>(batch.gradients[static_cast<size_t>(i * 8 + c)]);
    }
  }
  double square = 0.0;
  for (const double sum : sums) square += sum * sum;
  std::vector<float> norms;
  for (const int64_t threads : {1, 2, 8}) {
    TestParallel parallel(threads);
    TestTable table(8, 400, OptimizerKind::kSgd);
    const Seen seen = table.Read(&parallel, batch);
    const std::vector<UpdateBatch> batches = {
        {batch.View(), seen.slots.data(), &seen.layout_version,
         seen.counts.data(), 1, batch.gradients.data()}};
    norms.push_back(GlobalNorm(&parallel, table.rules().keys, batches, 8,
                               FloatType::kFloat32));
  }
  CHECK_NEAR(norms[0], std::sqrt(square), 1e-5 * std::sqrt(square));
  CHECK_EQ(norms[0], norms[1]);
  CHECK_EQ(norms[0], norms[2]);
}

}  // namespace
}  // namespace oneemb
