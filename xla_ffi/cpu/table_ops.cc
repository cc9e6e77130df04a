#include "cpu/table_ops.h"

#include <cstring>

#include "core/counters.h"
#include "cpu/insert.h"
#include "cpu/memory.h"
#include "cpu/probe.h"
#include "cpu/row_update.h"

namespace oneemb {
namespace {

constexpr int64_t kGrain = 4096;
constexpr int64_t kBytesGrain = int64_t{1} << 20;

// Runs body(range) on ranges of a byte count.
template <class Body>
void ForBytes(Parallel* parallel, int64_t bytes, const Body& body) {
  const int64_t tasks = NumTasks(*parallel, bytes, kBytesGrain);
  parallel->Run(tasks,
                [&](int64_t task) { body(TaskRange(bytes, task, tasks)); });
}

void ZeroBytes(Parallel* parallel, void* data, int64_t bytes) {
  ForBytes(parallel, bytes, [data](Range range) {
    std::memset(static_cast<char*>(data) + range.begin, 0,
                static_cast<size_t>(range.end - range.begin));
  });
}

void CopyBytes(Parallel* parallel, const void* from, void* to, int64_t bytes) {
  ForBytes(parallel, bytes, [from, to](Range range) {
    std::memcpy(static_cast<char*>(to) + range.begin,
                static_cast<const char*>(from) + range.begin,
                static_cast<size_t>(range.end - range.begin));
  });
}

// Adds the keys of `from` to the empty `to` in order of their slots: an index
// is what its rows make of it, not what it grew from.
bool InsertInOrder(const IndexView& from, int64_t rows, const IndexView& to) {
  const Scratch space(rows * int64_t{sizeof(Key)});
  if (!space.ok()) return false;
  Key* const keys = space.As<Key>();
  for (int64_t b = 0; b < from.num_buckets; ++b) {
    const Bucket& bucket = from.buckets[b];
    for (int e = 0; e < kBucketEntries; ++e) {
      const int64_t slot = bucket.slots[e];
      // An index is an array that a program may have changed, too.
      if (bucket.tags[e] == 0 || slot < 0 || slot >= rows) continue;
      keys[slot] = {bucket.ids[e], bucket.tables[e]};
    }
  }
  constexpr int64_t kAhead = 16;
  for (int64_t slot = 0; slot < rows; ++slot) {
    if (slot + kAhead < rows) {
      const uint64_t ahead = HashKey(keys[slot + kAhead]);
      PrefetchRead(to.buckets + HomeBucket(ahead, to.num_buckets));
    }
    InsertKey(to, keys[slot], HashKey(keys[slot]), static_cast<int32_t>(slot));
  }
  return true;
}

void InitWholeRow(const TableView& table, const TableRules& rules, uint64_t id,
                  int32_t table_id, uint32_t* row) {
  // Padding words of the row are written too.
  std::memset(row, 0, static_cast<size_t>(table.row_words) * sizeof(uint32_t));
  FillInitialRow(rules.initializers, static_cast<uint16_t>(table_id), id,
                 reinterpret_cast<float*>(row));
  DispatchOptimizer(rules.optimizer.kind, [&](auto optimizer) {
    InitState<decltype(optimizer)>(rules.optimizer, rules.embedding_dim, row);
  });
}

void ReadRow(const TableView& table, const TableRules& rules,
             const ProbeItem& item, uint32_t* out) {
  const size_t row_bytes =
      static_cast<size_t>(table.row_words) * sizeof(uint32_t);
  if (item.slot >= 0) {
    std::memcpy(out, table.Row(item.slot), row_bytes);
  } else if (item.slot == kSlotMissing) {
    InitWholeRow(table, rules, item.id, item.table, out);
  } else {
    std::memset(out, 0, row_bytes);
  }
}

}  // namespace

void CreateTable(Parallel* parallel, const TableView& table) {
  const int64_t index_bytes = table.index.num_buckets * int64_t{sizeof(Bucket)};
  const int64_t clock_bytes = table.capacity * int64_t{sizeof(uint32_t)};
  AdviseHugePages(table.index.buckets, index_bytes);
  AdviseHugePages(table.rows,
                  table.capacity * table.row_words * int64_t{sizeof(uint32_t)});
  AdviseHugePages(table.clock, clock_bytes);
  ZeroBytes(parallel, table.index.buckets, index_bytes);
  ZeroBytes(parallel, table.clock, clock_bytes);
  if (!table.cached()) return;
  const int64_t residency_bytes =
      table.capacity * int64_t{sizeof(SlotResidency)};
  AdviseHugePages(table.residency, residency_bytes);
  ZeroBytes(parallel, table.residency, residency_bytes);
}

bool GrowTable(Parallel* parallel, const TableView& from, const TableView& to) {
  CreateTable(parallel, to);
  const int64_t rows = from.slots_used();
  const int64_t word = sizeof(uint32_t);
  CopyBytes(parallel, from.rows, to.rows, rows * from.row_words * word);
  CopyBytes(parallel, from.clock, to.clock, rows * word);
  return InsertInOrder(from.index, rows, to.index);
}

void ReadRows(Parallel* parallel, const TableView& table,
              const TableRules& rules, const IdsView& ids, uint32_t* rows,
              int32_t* slots) {
  const auto ahead = [&](int32_t slot) {
    if (slot >= 0) PrefetchRead(table.Row(slot));
  };
  const auto emit = [&](ProbeItem item) {
    // A reserved slot has no row yet.
    if (item.slot >= 0 && table.IsReserved(item.slot)) item.slot = kSlotMissing;
    ReadRow(table, rules, item, rows + item.position * table.row_words);
    slots[item.position] = item.slot;
  };
  const int64_t tasks = NumTasks(*parallel, ids.size, kGrain);
  parallel->Run(tasks, [&](int64_t task) {
    Probe(table.index, rules.keys, ids, TaskRange(ids.size, task, tasks), ahead,
          emit);
  });
}

void WriteRows(const TableView& table, const TableRules& rules,
               const IdsView& ids, const uint32_t* rows, uint32_t step) {
  uint64_t* const counters = table.counters;
  const int64_t before = table.slots_used();
  InsertCursor cursor{table.index, table.capacity, before,
                      *table.layout_version};
  IdCursor id(ids, 0);
  for (int64_t i = 0; i < ids.size; ++i, id.Next()) {
    const int32_t rejected = rules.keys.Reject(id.id(), id.table());
    counters[kBadTables] += rejected == kSlotBadTable ? 1 : 0;
    if (rejected < 0) continue;
    const Key key = rules.keys.MakeKey(id.id(), id.table());
    const int32_t slot = FindOrInsert(&cursor, key, HashKey(key));
    counters[kOverflows] += slot < 0 ? 1 : 0;
    if (slot < 0) continue;
    std::memcpy(table.Row(slot), rows + i * table.row_words,
                static_cast<size_t>(table.row_words) * sizeof(uint32_t));
    table.clock[slot] = step;
  }
  counters[kInserts] += static_cast<uint64_t>(cursor.num_rows - before);
  counters[kRows] = static_cast<uint64_t>(cursor.num_rows);
  *table.layout_version = cursor.layout_version;
}

}  // namespace oneemb
