#include "cpu/norm.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "core/numeric.h"
#include "core/summation.h"
#include "cpu/batch_slots.h"
#include "cpu/group.h"
#include "cpu/memory.h"

namespace oneemb {
namespace {

constexpr int64_t kGrain = 1024;
// Marks the positions at which no row occurs first.
constexpr float kNotFirst = -1.0F;

// Gives each distinct missing key a slot of its own, from `first_slot` on, by
// an index that lives for this call. Returns the number of slots, or -1.
int64_t NumberMissing(const FlatBatch& batch, const KeyRules& rules,
                      int64_t first_slot, int32_t* slots) {
  const int64_t missing = std::count(slots, slots + batch.size(), kSlotMissing);
  if (missing == 0) return first_slot;
  const int64_t num_buckets = NumBuckets(missing);
  const int64_t bytes = num_buckets * int64_t{sizeof(Bucket)};
  const Scratch buckets(bytes);
  if (!buckets.ok()) return -1;
  std::memset(buckets.As<void>(), 0, static_cast<size_t>(bytes));
  InsertCursor cursor{
      {buckets.As<Bucket>(), num_buckets}, first_slot + missing, first_slot, 0};
  InsertMissing(batch, rules, &cursor, slots);
  return cursor.num_rows;
}

// Numbers the rows of the batch; the slots of the lookups serve where all of
// them saw the same layout. Returns the number of slots, or -1 when the batch
// is damaged or there is no memory.
int64_t NumberRows(Parallel* parallel, const FlatBatch& batch,
                   const KeyRules& rules, int32_t* slots) {
  const SlotReport report = batch.CopySlots(parallel, slots);
  if (!report.intact) return -1;
  if (batch.SawOneLayout()) {
    return NumberMissing(batch, rules, int64_t{report.highest} + 1, slots);
  }
  for (int64_t i = 0; i < batch.size(); ++i) {
    slots[i] = slots[i] >= 0 ? kSlotMissing : slots[i];
  }
  return NumberMissing(batch, rules, 0, slots);
}

// Writes the square of each row's gradient to the row's first position.
template <class Access>
void SquareRows(Parallel* parallel, const GradientsView& gradients,
                const SlotPosition* entries, int64_t count, int64_t tasks,
                float* space, float* squares) {
  parallel->Run(tasks, [&](int64_t task) {
    const Range range =
        AlignToGroups(entries, count, TaskRange(count, task, tasks));
    GradientSum<Access> sum(gradients,
                            space + task * GradientSumSpace(gradients.dim));
    for (int64_t i = range.begin; i < range.end;) {
      const int64_t end = GroupEnd(entries, i, range.end);
      const float* const g = sum.Sum(entries + i, end - i);
      squares[PositionOf(entries[i])] =
          SumColumns(gradients.dim, [g](int64_t c) { return g[c] * g[c]; });
      i = end;
    }
  });
}

}  // namespace

float GlobalNorm(Parallel* parallel, const KeyRules& rules,
                 const std::vector<UpdateBatch>& batches, int64_t dim,
                 FloatType type) {
  const FlatBatch batch(batches);
  const int64_t n = batch.size();
  const Scratch slots(n * int64_t{sizeof(int32_t)});
  const Scratch squares(n * int64_t{sizeof(float)});
  const Scratch space(2 * n * int64_t{sizeof(SlotPosition)});
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const int64_t tasks = NumTasks(*parallel, n, kGrain, 8);
  const Scratch sums(tasks * GradientSumSpace(dim) * int64_t{sizeof(float)});
  if (!slots.ok() || !squares.ok() || !space.ok() || !sums.ok()) return nan;
  const int64_t num_slots =
      NumberRows(parallel, batch, rules, slots.As<int32_t>());
  if (num_slots < 0) return nan;
  int64_t count = 0;
  const SlotPosition* const entries = SortBySlot(
      parallel, slots.As<int32_t>(), n, num_slots, space.As<SlotPosition>(),
      space.As<SlotPosition>() + n, &count);
  float* const square = squares.As<float>();
  std::fill(square, square + n, kNotFirst);
  const std::vector<GradientBatch>& sources = batch.gradients();
  const GradientsView gradients{
      sources.data(), static_cast<int64_t>(sources.size()), dim, type};
  DispatchFloat(type, [&](auto access) {
    SquareRows<decltype(access)>(parallel, gradients, entries, count, tasks,
                                 sums.As<float>(), square);
  });
  BlockSum total;
  for (int64_t i = 0; i < n; ++i) {
    if (square[i] != kNotFirst) total.Add(square[i]);
  }
  return Sqrt(total.Total());
}

}  // namespace oneemb
