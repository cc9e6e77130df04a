#include "cpu/lookup.h"

#include <algorithm>
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
// Ids that are searched for before their rows are copied: their slots stay in
// the cache.
constexpr int64_t kPiece = 4 * kDigestIds;

// What was not a hit.
struct Others {
  int64_t all = 0;
  int64_t misses = 0;
  int64_t bad_tables = 0;
  int64_t unstaged = 0;
};

// Writes the activations of one id after another. By value what each of them
// needs: the compiler would read a reference again after every store.
template <class Access>
class RowWriter {
 public:
  using Storage = typename Access::Storage;

  RowWriter(const TableView& table, const TableRules& rules,
            const LookupOutput& out, int64_t num_ids, float* row)
      : table_(table),
        dim_(rules.embedding_dim),
        out_(static_cast<Storage*>(out.activations)),
        stream_(std::is_same_v<Storage, float> &&
                num_ids * dim_ * FloatBytes(out.type) > kStreamBytes &&
                CanStream(out_, dim_)),
        slots_(out.slots),
        rules_(&rules),
        row_(row) {}

  bool streams() const { return stream_; }
  // Wide rows are not asked for while ids are searched for: buckets would wait
  // for them. Unless the output goes past the caches, which takes as long as
  // the search, beside it.
  bool searches_first() const { return !stream_ && row_bytes() > kNarrowBytes; }
  // Of an embedding, as the table has it.
  int64_t row_bytes() const { return dim_ * int64_t{sizeof(float)}; }

  // Asks for the row of a slot.
  [[gnu::always_inline]] void Prefetch(int32_t slot) const {
    if (slot < 0) return;
    PrefetchLines(table_.Row(slot), row_bytes());
    if (table_.cached() && !table_.none_reserved) {
      PrefetchRead(&table_.residency[slot]);
    }
  }

  [[gnu::always_inline]] void Write(const ProbeItem& item,
                                    Others* others) const {
    Storage* const out = out_ + item.position * dim_;
    slots_[item.position] = item.slot;
    if (item.slot >= 0 && !table_.IsReserved(item.slot)) {
      Convert(reinterpret_cast<const float*>(table_.Row(item.slot)), out);
    } else {
      WriteOther(item, out, others);
    }
  }

 private:
  [[gnu::noinline]] void WriteOther(const ProbeItem& item, Storage* out,
                                    Others* others) const {
    const int32_t slot = item.slot;
    const bool unstaged = slot == kSlotMissing && table_.cached();
    ++others->all;
    others->bad_tables += slot == kSlotBadTable ? 1 : 0;
    others->unstaged += unstaged ? 1 : 0;
    if (slot == kSlotPadding) return Fill(0.0F, out);
    if (slot == kSlotBadTable || unstaged) {
      return Fill(std::numeric_limits<float>::quiet_NaN(), out);
    }
    ++others->misses;
    FillInitialRow(rules_->initializers, static_cast<uint16_t>(item.table),
                   item.id, row_);
    Convert(row_, out);
  }

  [[gnu::always_inline]] void Convert(const float* ONEEMB_RESTRICT in,
                                      Storage* ONEEMB_RESTRICT out) const {
    if constexpr (std::is_same_v<Storage, float>) {
      return stream_ ? StreamFloats(in, dim_, out) : CopyFloats(in, dim_, out);
    }
    for (int64_t c = 0; c < dim_; ++c) out[c] = Access::Store(in[c]);
  }

  void Fill(float value, Storage* out) const {
    for (int64_t c = 0; c < dim_; ++c) out[c] = Access::Store(value);
  }

  TableView table_;
  int64_t dim_;
  Storage* out_;
  bool stream_;
  int32_t* slots_;
  const TableRules* rules_;
  float* row_;  // room for one initial row
};

struct Counts {
  uint32_t values[kNumLookupCounts] = {};
  int64_t unstaged = 0;
};

Counts CountsOf(const Others& others, Range range, uint32_t checksum) {
  Counts counts;
  const int64_t hits = range.end - range.begin - others.all;
  counts.values[kLookupHits] = static_cast<uint32_t>(hits);
  counts.values[kLookupMisses] = static_cast<uint32_t>(others.misses);
  counts.values[kLookupBadTables] = static_cast<uint32_t>(others.bad_tables);
  counts.values[kLookupChecksum] = checksum;
  counts.unstaged = others.unstaged;
  return counts;
}

template <class Access>
Counts LookupRange(const TableView& table, const TableRules& rules,
                   const IdsView& ids, const LookupOutput& out,
                   const KnownSlots* known, Range range, float* row) {
  const RowWriter<Access> writer(table, rules, out, ids.size, row);
  Others others;
  const auto ahead = [writer](int32_t slot) __attribute__((always_inline)) {
    writer.Prefetch(slot);
  };
  const auto emit = [writer, to = &others](const ProbeItem& item) {
    writer.Write(item, to);
  };
  if (known == nullptr && !writer.searches_first()) {
    Probe(table.index, rules.keys, ids, range, ahead, emit);
  } else {
    for (int64_t i = range.begin; i < range.end; i += kPiece) {
      const Range piece{i, std::min(i + kPiece, range.end)};
      const bool knows = known != nullptr && Knows(*known, ids, piece);
      if (!knows) ProbeSlots(table.index, rules.keys, ids, piece, out.slots);
      Follow(ids, knows ? known->slots : out.slots, piece, writer.row_bytes(),
             ahead, emit);
    }
  }
  if (writer.streams()) FinishStream();
  // Apart: in vectors it takes a fifth of what it would in `emit`.
  return CountsOf(others, range, ScanSlots(ids, out.slots, range).checksum);
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
    const Range range = TaskBlocks(ids.size, kDigestIds, task, tasks);
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
