#include "cpu/update.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "core/convert.h"
#include "core/counters.h"
#include "cpu/batch_slots.h"
#include "cpu/gradient_sum.h"
#include "cpu/group.h"
#include "cpu/memory.h"
#include "cpu/row_update.h"

namespace oneemb {
namespace {

// Gradients a task takes at least.
constexpr int64_t kGrain = 1024;
// How many gradients ahead the memory is asked for.
constexpr int64_t kAhead = 24;

// What the tasks of one update share.
struct RowPass {
  const TableView& table;
  const TableRules& rules;
  const FlatBatch& batch;
  GradientsView gradients;
  const SlotPosition* entries;
  int64_t num_entries;
  int64_t first_new_slot;  // of a table that is not cached
  float grad_scale;
  uint32_t step;
  int64_t num_tasks;
  float* space;  // TaskSpace floats a task
};

int64_t TaskSpace(int64_t dim) { return GradientSumSpace(dim) + dim; }

bool AllFinite(const float* values, int64_t n) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t magnitude = FloatBits(values[i]) & 0x7fffffffU;
    largest = largest < magnitude ? magnitude : largest;
  }
  return largest < 0x7f800000U;
}

// How many of a row's gradients hold a NaN or an infinity.
template <class Access>
int64_t CountNonFinite(const RowPass& pass, const SlotPosition* entries,
                       int64_t count, float* buffer) {
  using Storage = typename Access::Storage;
  const int64_t dim = pass.gradients.dim;
  int64_t found = 0;
  for (int64_t i = 0; i < count; ++i) {
    const auto* const gradient = reinterpret_cast<const Storage*>(
        pass.gradients.At(PositionOf(entries[i])));
    for (int64_t c = 0; c < dim; ++c) buffer[c] = Access::Load(gradient[c]);
    found += AllFinite(buffer, dim) ? 0 : 1;
  }
  return found;
}

// Writes the initial row of a slot that this update has just handed out. Where
// tables share their keys, the lowest one that asked decides.
template <class Optimizer>
void InitRow(const RowPass& pass, const SlotPosition* entries, int64_t count,
             uint32_t* row) {
  const int64_t first = PositionOf(entries[0]);
  int32_t table = pass.batch.Table(first);
  for (int64_t i = 1; pass.rules.keys.shared_keys && i < count; ++i) {
    table = std::min(table, pass.batch.Table(PositionOf(entries[i])));
  }
  FillInitialRow(pass.rules.initializers, static_cast<uint16_t>(table),
                 pass.batch.Id(first), reinterpret_cast<float*>(row));
  InitState<Optimizer>(pass.rules.optimizer, pass.rules.embedding_dim, row);
}

// Updates the rows whose entries lie in one range.
template <class Access, class Optimizer>
class RangeUpdate {
 public:
  RangeUpdate(const RowPass& pass, const typename Optimizer::Scalars& scalars,
              float* space)
      : pass_(pass),
        scalars_(scalars),
        dim_(pass.rules.embedding_dim),
        sum_(pass.gradients, space),
        scaled_(space + GradientSumSpace(dim_)) {}

  void Run(Range range) {
    ahead_ = range.begin;
    end_ = range.end;
    for (int64_t i = range.begin; i < range.end;) {
      const int64_t end = GroupEnd(pass_.entries, i, range.end);
      UpdateOne(i, end - i);
      i = end;
    }
  }

  // Gradients that were not finite.
  int64_t non_finite() const { return non_finite_; }
  // Rows of a cached table that this update began.
  int64_t inserted() const { return inserted_; }

 private:
  // Narrow rows are asked for to be written: for minutes, a machine may ignore
  // the other kind of prefetch (docs/performance.md). Wide ones go to the
  // second-level cache, which can wait for more lines.
  [[gnu::always_inline]] void PrefetchRow(int32_t slot) const {
    const uint32_t* const row = pass_.table.Row(slot);
    const int64_t bytes = pass_.table.row_words * int64_t{sizeof(uint32_t)};
    if (bytes > kNarrowBytes) {
      PrefetchLines(row, bytes);
    } else {
      PrefetchLinesToWrite(row, bytes);
    }
    if (pass_.table.cached()) {
      PrefetchRead(&pass_.table.residency[slot]);
    } else {
      PrefetchWrite(&pass_.table.clock[slot]);
    }
  }

  void PrefetchUntil(int64_t end) {
    for (; ahead_ < end; ++ahead_) {
      const SlotPosition entry = pass_.entries[ahead_];
      sum_.Prefetch(entry);
      if (ahead_ > 0 && SlotOf(pass_.entries[ahead_ - 1]) == SlotOf(entry)) {
        continue;
      }
      PrefetchRow(SlotOf(entry));
    }
  }

  void UpdateOne(int64_t first, int64_t count) {
    const SlotPosition* const entries = pass_.entries + first;
    const auto ahead = [&](int64_t n) {
      PrefetchUntil(std::min(first + n + kAhead, end_));
    };
    const int32_t slot = SlotOf(entries[0]);
    uint32_t* const row = pass_.table.Row(slot);
    const bool is_new = pass_.table.cached() ? pass_.table.IsReserved(slot)
                                             : slot >= pass_.first_new_slot;
    if (is_new) InitRow<Optimizer>(pass_, entries, count, row);
    const float* const gradient = Scaled(sum_.Sum(entries, count, ahead));
    if (!AllFinite(gradient, dim_)) {
      // Finite gradients whose sum overflows, or a scale that does it, count
      // as one.
      non_finite_ += std::max<int64_t>(
          1, CountNonFinite<Access>(pass_, entries, count, scaled_));
      // The count used the buffer of the scaled gradient.
      UpdateRow<Optimizer>(scalars_, dim_,
                           Scaled(sum_.Sum(entries, count, ahead)), row);
    } else {
      UpdateRow<Optimizer>(scalars_, dim_, gradient, row);
    }
    if (pass_.table.cached()) {  // whose clock `stage` has set
      uint32_t& state = pass_.table.residency[slot].state;
      if (state != kSlotDirty) state = kSlotDirty;
      inserted_ += is_new ? 1 : 0;
    } else {
      pass_.table.clock[slot] = pass_.step;
    }
  }

  const float* Scaled(const float* gradient) {
    if (pass_.grad_scale == 1.0F) return gradient;
    for (int64_t c = 0; c < dim_; ++c) {
      scaled_[c] = gradient[c] * pass_.grad_scale;
    }
    return scaled_;
  }

  const RowPass& pass_;
  const typename Optimizer::Scalars& scalars_;
  int64_t dim_;
  GradientSum<Access> sum_;
  float* scaled_;
  int64_t ahead_ = 0;  // entries up to here are asked for
  int64_t end_ = 0;
  int64_t non_finite_ = 0;
  int64_t inserted_ = 0;
};

struct RowCounts {
  std::atomic<int64_t> non_finite{0};
  std::atomic<int64_t> inserted{0};
};

template <class Access, class Optimizer>
void UpdateRows(Parallel* parallel, const RowPass& pass, float learning_rate,
                RowCounts* counts) {
  const auto scalars =
      Optimizer::Prepare(pass.rules.optimizer, learning_rate, pass.step);
  parallel->Run(pass.num_tasks, [&](int64_t task) {
    const Range range =
        AlignToGroups(pass.entries, pass.num_entries,
                      TaskRange(pass.num_entries, task, pass.num_tasks));
    float* const space = pass.space + task * TaskSpace(pass.gradients.dim);
    RangeUpdate<Access, Optimizer> update(pass, scalars, space);
    update.Run(range);
    counts->non_finite += update.non_finite();
    counts->inserted += update.inserted();
  });
}

void DispatchUpdateRows(Parallel* parallel, const RowPass& pass,
                        float learning_rate, RowCounts* counts) {
  DispatchFloat(pass.gradients.type, [&](auto access) {
    DispatchOptimizer(pass.rules.optimizer.kind, [&](auto optimizer) {
      UpdateRows<decltype(access), decltype(optimizer)>(parallel, pass,
                                                        learning_rate, counts);
    });
  });
}

void AddLookupCounts(const UpdateArgs& args, uint64_t* counters) {
  for (const UpdateBatch& batch : args.batches) {
    for (int64_t m = 0; m < batch.num_microbatches; ++m) {
      const uint32_t* const counts = batch.counts + m * kNumLookupCounts;
      counters[kHits] += counts[kLookupHits];
      counters[kMisses] += counts[kLookupMisses];
      counters[kBadTables] += counts[kLookupBadTables];
    }
  }
}

// Searches the index again where the lookups' slots may not be trusted. Whether
// it did.
bool FindSlots(Parallel* parallel, const TableView& table,
               const TableRules& rules, const FlatBatch& batch,
               const SlotReport& report, int64_t rows, int32_t* slots) {
  if (batch.SawLayout(*table.layout_version) && report.Within(rows)) {
    return false;
  }
  batch.ProbeSlots(parallel, table.index, rules.keys, slots);
  return true;
}

// Finds the slot of every position, inserting what is missing. `slots` are what
// the lookups reported.
void PlaceRows(Parallel* parallel, const TableView& table,
               const TableRules& rules, const FlatBatch& batch,
               const SlotReport& report, int32_t* slots) {
  uint64_t* const counters = table.counters;
  const int64_t rows = table.slots_used();
  const bool searched =
      FindSlots(parallel, table, rules, batch, report, rows, slots);
  if (!searched && report.lowest >= 0) return;  // nothing is missing
  InsertCursor cursor{table.index, table.capacity, rows, *table.layout_version};
  const int64_t refused = InsertMissing(batch, rules.keys, &cursor, slots);
  counters[kInserts] += static_cast<uint64_t>(cursor.num_rows - rows);
  counters[kOverflows] += static_cast<uint64_t>(refused);
  counters[kRows] = static_cast<uint64_t>(cursor.num_rows);
  *table.layout_version = cursor.layout_version;
}

// The same for a cached table, whose new rows have their slots from `stage`.
// False when a position has none, or had none when it was looked up: then its
// activations were NaN, and all gradients of the batch may be.
bool PlaceStaged(Parallel* parallel, const TableView& table,
                 const TableRules& rules, const FlatBatch& batch,
                 const SlotReport& report, int32_t* slots) {
  const int64_t used = static_cast<int64_t>(table.counters[kSlotsUsed]);
  const auto missing = [&] {
    return std::count(slots, slots + batch.size(), kSlotMissing);
  };
  int64_t unstaged = report.lowest < 0 ? missing() : 0;
  if (unstaged == 0 &&
      FindSlots(parallel, table, rules, batch, report, used, slots)) {
    unstaged = missing();
  }
  table.counters[kUnstaged] += static_cast<uint64_t>(unstaged);
  return unstaged == 0;
}

}  // namespace

bool Update(Parallel* parallel, const TableView& table, const TableRules& rules,
            const UpdateArgs& args) {
  if (!args.apply) return true;
  uint64_t* const counters = table.counters;
  if (!std::isfinite(args.learning_rate) || args.learning_rate < 0.0F) {
    ++counters[kBadLearningRates];
    return true;
  }
  const FlatBatch batch(args.batches);
  const int64_t first_new_slot = table.slots_used();
  const Scratch slots(batch.size() * int64_t{sizeof(int32_t)});
  const Scratch entries_space(2 * batch.size() * int64_t{sizeof(SlotPosition)});
  const int64_t tasks = NumTasks(*parallel, batch.size(), kGrain, 8);
  const Scratch task_space(tasks * TaskSpace(rules.embedding_dim) *
                           int64_t{sizeof(float)});
  if (!slots.ok() || !entries_space.ok() || !task_space.ok()) return false;
  const SlotReport report = batch.CopySlots(parallel, slots.As<int32_t>());
  if (!report.intact) {
    ++counters[kDamagedContexts];
    return true;
  }
  if (!table.cached()) {
    PlaceRows(parallel, table, rules, batch, report, slots.As<int32_t>());
  } else if (!PlaceStaged(parallel, table, rules, batch, report,
                          slots.As<int32_t>())) {
    return true;
  }
  AddLookupCounts(args, counters);
  int64_t count = 0;
  const SlotPosition* const entries =
      SortBySlot(parallel, slots.As<int32_t>(), batch.size(),
                 table.slots_used(), entries_space.As<SlotPosition>(),
                 entries_space.As<SlotPosition>() + batch.size(), &count);
  const std::vector<GradientBatch>& gradients = batch.gradients();
  const RowPass pass{table,
                     rules,
                     batch,
                     {gradients.data(), static_cast<int64_t>(gradients.size()),
                      rules.embedding_dim, args.gradient_type},
                     entries,
                     count,
                     first_new_slot,
                     args.grad_scale,
                     *args.step,
                     tasks,
                     task_space.As<float>()};
  RowCounts counts;
  DispatchUpdateRows(parallel, pass, args.learning_rate, &counts);
  counters[kNonFinite] += static_cast<uint64_t>(counts.non_finite.load());
  if (table.cached()) {
    counters[kInserts] += static_cast<uint64_t>(counts.inserted.load());
    counters[kRows] += static_cast<uint64_t>(counts.inserted.load());
  }
  ++*args.step;
  ++*args.generation;
  return true;
}

}  // namespace oneemb
