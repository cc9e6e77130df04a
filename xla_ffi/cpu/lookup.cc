#include "cpu/lookup.h"

#include <atomic>
#include <cstring>
#include <limits>
#include <type_traits>

#include "core/convert.h"
#include "core/counters.h"
#include "cpu/checksum.h"
#include "cpu/memory.h"
#include "cpu/probe.h"
#include "cpu/stream.h"

namespace oneemb {
namespace {

// Ids a task takes at least: below this, waking a thread costs more.
constexpr int64_t kGrain = 2048;
// Outputs larger than this go past the caches.
constexpr int64_t kStreamBytes = int64_t{16} << 20;

// Writes the activations of one id after another.
template <class Access>
class RowWriter {
 public:
  using Storage = typename Access::Storage;

  RowWriter(const TableView& table, const TableRules& rules, Storage* out,
            bool stream, float* row)
      : table_(table), rules_(rules), out_(out), stream_(stream), row_(row) {}

  void Write(const ProbeItem& item) const {
    Storage* const out = out_ + item.position * rules_.embedding_dim;
    const int32_t slot = item.slot;
    if (slot >= 0 && !table_.IsReserved(slot)) {
      return Convert(reinterpret_cast<const float*>(table_.Row(slot)), out);
    }
    if (slot == kSlotPadding) return Fill(0.0F, out);
    if (slot == kSlotBadTable || (slot < 0 && table_.cached())) {
      return Fill(std::numeric_limits<float>::quiet_NaN(), out);
    }
    FillInitialRow(rules_.initializers, static_cast<uint16_t>(item.table),
                   item.id, row_);
    Convert(row_, out);
  }

 private:
  void Convert(const float* ONEEMB_RESTRICT in,
               Storage* ONEEMB_RESTRICT out) const {
    if constexpr (std::is_same_v<Storage, float>) {
      if (stream_) return StreamFloats(in, rules_.embedding_dim, out);
    }
    for (int64_t c = 0; c < rules_.embedding_dim; ++c) {
      out[c] = Access::Store(in[c]);
    }
  }

  void Fill(float value, Storage* out) const {
    for (int64_t c = 0; c < rules_.embedding_dim; ++c) {
      out[c] = Access::Store(value);
    }
  }

  const TableView& table_;
  const TableRules& rules_;
  Storage* out_;
  bool stream_;
  float* row_;  // room for one initial row
};

struct Counts {
  uint32_t values[kNumLookupCounts] = {};
  int64_t unstaged = 0;

  void Add(const TableView& table, int32_t slot) {
    const bool missing = slot == kSlotMissing;
    const bool reserved = slot >= 0 && table.IsReserved(slot);
    values[kLookupHits] += slot >= 0 && !reserved ? 1 : 0;
    values[kLookupMisses] += reserved || (missing && !table.cached()) ? 1 : 0;
    values[kLookupBadTables] += slot == kSlotBadTable ? 1 : 0;
    unstaged += missing && table.cached() ? 1 : 0;
  }
};

template <class Access>
Counts LookupRange(const TableView& table, const TableRules& rules,
                   const IdsView& ids, const LookupOutput& out,
                   const KnownSlots* known, Range range, float* row) {
  const int64_t row_bytes = rules.embedding_dim * int64_t{sizeof(float)};
  Counts counts;
  const int64_t bytes = ids.size * rules.embedding_dim * FloatBytes(out.type);
  const bool stream =
      bytes > kStreamBytes && CanStream(out.activations, rules.embedding_dim);
  const RowWriter<Access> writer(
      table, rules, static_cast<typename Access::Storage*>(out.activations),
      stream, row);
  const auto ahead = [&](int32_t slot) __attribute__((always_inline)) {
    if (slot < 0) return;
    PrefetchLines(table.Row(slot), row_bytes);
    if (table.cached() && !table.none_reserved) {
      PrefetchRead(&table.residency[slot]);
    }
  };
  const auto emit = [&](const ProbeItem& item) {
    writer.Write(item);
    out.slots[item.position] = item.slot;
    counts.Add(table, item.slot);
  };
  if (known != nullptr && Knows(*known, ids, range)) {
    Follow(*known, range, ahead, emit);
  } else {
    Probe(table.index, rules.keys, ids, range, ahead, emit);
  }
  // Apart: in vectors it takes a fifth of what it would in `emit`.
  counts.values[kLookupChecksum] = ScanSlots(ids, out.slots, range).checksum;
  if (stream) FinishStream();
  return counts;
}

}  // namespace

bool Lookup(Parallel* parallel, const TableView& table, const TableRules& rules,
            const IdsView& ids, const LookupOutput& out,
            const KnownSlots* known) {
  AdviseHugePages(out.activations,
                  ids.size * rules.embedding_dim * FloatBytes(out.type));
  std::atomic<uint32_t> totals[kNumLookupCounts] = {};
  std::atomic<int64_t> unstaged{0};
  const int64_t tasks = NumTasks(*parallel, ids.size, kGrain, 4);
  const Scratch rows(tasks * rules.embedding_dim * int64_t{sizeof(float)});
  if (!rows.ok()) return false;
  if (known != nullptr && !MayKnow(*known, table, ids)) known = nullptr;
  parallel->Run(tasks, [&](int64_t task) {
    const Range range = TaskRange(ids.size, task, tasks);
    DispatchFloat(out.type, [&](auto access) {
      const Counts counts = LookupRange<decltype(access)>(
          table, rules, ids, out, known, range,
          rows.As<float>() + task * rules.embedding_dim);
      for (int c = 0; c < kNumLookupCounts; ++c) totals[c] += counts.values[c];
      unstaged += counts.unstaged;
    });
  });
  for (int c = 0; c < kNumLookupCounts; ++c) out.counts[c] = totals[c];
  if (out.unstaged != nullptr) *out.unstaged = unstaged;
  if (out.seen_version != nullptr) *out.seen_version = *table.layout_version;
  return true;
}

}  // namespace oneemb
