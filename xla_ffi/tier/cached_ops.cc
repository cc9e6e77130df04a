#include "tier/cached_ops.h"

#include <cstring>
#include <vector>

#include "core/counters.h"
#include "cpu/table_ops.h"
#include "tier/cached_table.h"
#include "tier/cpu_tier.h"
#include "tier/staged_batch.h"

namespace oneemb {
namespace {

constexpr IdsView kNoIds{nullptr, 1, 0, 0, nullptr, 1};

// The table and a batch as tier/cached_table.h has them.
class OnCpu {
 public:
  OnCpu(Parallel* parallel, const CachedTable& table, const IdsView& ids)
      : tier_(parallel, table.view, table.rules, ids, table.generation,
              table.store.get()),
        table_{&tier_, table.store, table.nonce, table.run} {}

  const TieredTable& table() const { return table_; }

 private:
  CpuTier tier_;
  TieredTable table_;
};

// Counts the rows that begin in slots that were reserved for them.
class ReservedRows {
 public:
  explicit ReservedRows(const CachedTable& table)
      : table_(table), before_(table.view.counters[kInserts]) {}
  ~ReservedRows() {
    table_.store->reserved() -=
        static_cast<int64_t>(table_.view.counters[kInserts] - before_);
  }
  ReservedRows(const ReservedRows&) = delete;
  ReservedRows& operator=(const ReservedRows&) = delete;

 private:
  const CachedTable& table_;
  const uint64_t before_;
};

void WriteStagedRows(const CachedTable& table, const IdsView& ids,
                     const uint32_t* rows) {
  const TableView& view = table.view;
  const KeyRules& rules = table.rules.keys;
  IdCursor id(ids, 0);
  for (int64_t i = 0; i < ids.size; ++i, id.Next()) {
    const int32_t rejected = rules.Reject(id.id(), id.table());
    view.counters[kBadTables] += rejected == kSlotBadTable ? 1 : 0;
    if (rejected < 0) continue;
    const Key key = rules.MakeKey(id.id(), id.table());
    const int32_t slot = FindSlot(view.index, key, HashKey(key));
    view.counters[kUnstaged] += slot < 0 ? 1 : 0;
    if (slot < 0) continue;
    const uint64_t is_new = view.IsReserved(slot) ? 1 : 0;
    view.counters[kRows] += is_new;
    view.counters[kInserts] += is_new;
    view.residency[slot].state = kSlotDirty;
    std::memcpy(view.Row(slot), rows + i * view.row_words,
                static_cast<size_t>(view.row_words) * sizeof(uint32_t));
  }
}

}  // namespace

std::shared_ptr<TableStore> StoreOf(const std::string& name) {
  return FindStore(name);
}

bool Stage(Parallel* parallel, const CachedTable& table, const IdsView& ids) {
  return Stage(OnCpu(parallel, table, ids).table());
}

bool Prefetch(Parallel* parallel, const CachedTable& table,
              const IdsView& ids) {
  return Prefetch(OnCpu(parallel, table, ids).table());
}

bool UpdateCached(Parallel* parallel, const CachedTable& table,
                  const UpdateArgs& args) {
  if (!args.apply) return true;
  if (table.store == nullptr) {
    ++table.view.counters[kStale];
    return true;
  }
  const MutexLock lock(table.store->operations());
  const OnCpu on_cpu(parallel, table, kNoIds);
  if (!MayChange(on_cpu.table(), Operation::kUpdate)) return true;
  const uint32_t before = *table.generation;
  const ReservedRows reserved(table);
  if (!Update(parallel, table.view, table.rules, args)) return false;
  if (*table.generation != before) {
    table.store->Advance(Operation::kUpdate, 0, table.run);
  }
  return true;
}

bool LookupCached(Parallel* parallel, const CachedTable& table,
                  const IdsView& ids, LookupOutput out) {
  Bucket empty{};
  TableView view = table.view;
  const bool stale =
      !MayRead(table.store, {table.nonce, *table.generation}, table.run);
  if (stale) view.index = {&empty, 1};  // there is nothing in it
  int64_t unstaged = 0;
  out.unstaged = &unstaged;
  const std::shared_ptr<const StagedBatch> staged =
      stale ? nullptr : table.store->staged();
  view.none_reserved =
      staged != nullptr && staged->NoneReserved(*table.generation);
  if (!Lookup(parallel, view, table.rules, ids, out,
              staged == nullptr ? nullptr : &staged->known())) {
    return false;
  }
  CountLookup(table.store.get(), table.nonce, stale, unstaged);
  return true;
}

bool ReadCachedRows(Parallel* parallel, const CachedTable& table,
                    const IdsView& ids, uint32_t* rows, int32_t* slots) {
  ReadRows(parallel, table.view, table.rules, ids, rows, slots);
  std::vector<Key> keys;
  std::vector<int64_t> positions;
  IdCursor id(ids, 0);
  for (int64_t i = 0; i < ids.size; ++i, id.Next()) {
    if (slots[i] != kSlotMissing) continue;
    keys.push_back(table.rules.keys.MakeKey(id.id(), id.table()));
    positions.push_back(i);
  }
  const auto row_bytes =
      static_cast<size_t>(table.view.row_words) * sizeof(uint32_t);
  TakenRows below;
  ReadBelow(OnCpu(parallel, table, ids).table(), keys, &below);
  for (size_t i = 0; i < keys.size(); ++i) {
    const char* const row = below.list().rows[i];
    if (row == nullptr) continue;
    slots[positions[i]] = 0;
    std::memcpy(rows + positions[i] * table.view.row_words, row, row_bytes);
  }
  return true;
}

bool WriteCachedRows(Parallel* parallel, const CachedTable& table,
                     const IdsView& ids, const uint32_t* rows) {
  const OnCpu on_cpu(parallel, table, ids);
  const uint32_t before = *table.generation;
  if (!Stage(on_cpu.table())) return false;
  if (*table.generation == before) return true;  // stale, and counted
  const MutexLock lock(table.store->operations());
  if (!MayChange(on_cpu.table(), Operation::kWrite)) return true;
  const ReservedRows reserved(table);
  WriteStagedRows(table, ids, rows);
  ++*table.generation;
  table.store->Advance(Operation::kWrite, 0, table.run);
  return true;
}

bool WriteDown(Parallel* parallel, const CachedTable& table) {
  return WriteDown(OnCpu(parallel, table, kNoIds).table());
}

void Flush(Parallel* parallel, const CachedTable& table,
           SlotResidency* residency, uint32_t* generation) {
  if (!Flush(OnCpu(parallel, table, kNoIds).table())) return;
  const int64_t used = table.view.slots_used();
  for (int64_t slot = 0; slot < used; ++slot) {
    uint32_t& state = residency[slot].state;
    state = state == kSlotDirty ? kSlotClean : state;
  }
  ++*generation;
}

}  // namespace oneemb
