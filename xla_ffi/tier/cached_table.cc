#include "tier/cached_table.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "core/counters.h"
#include "cpu/checksum.h"
#include "cpu/memory.h"
#include "cpu/table_ops.h"
#include "cpu/tier.h"
#include "store/table_store.h"
#include "tier/staged_batch.h"

namespace oneemb {
namespace {

// Rows that a task copies at least, and bytes written to the Store at most.
constexpr int64_t kCopyGrain = 256;
constexpr int64_t kFlushBytes = int64_t{8} << 20;

int64_t RowBytes(const TableView& table) {
  return table.row_words * int64_t{sizeof(uint32_t)};
}

KeySpan Span(const std::vector<Key>& keys) {
  return {keys.data(), static_cast<int64_t>(keys.size())};
}

// Tells apart the batches that a table may be staged for.
uint64_t Digest(const IdsView& ids, uint32_t checksum) {
  return (static_cast<uint64_t>(ids.size) << 32) | checksum;
}

// Calls body(i) for every row, on several threads.
template <class Body>
void ForRows(Parallel* parallel, int64_t count, const Body& body) {
  const int64_t tasks = NumTasks(*parallel, count, kCopyGrain);
  parallel->Run(tasks, [&](int64_t task) {
    const Range range = TaskRange(count, task, tasks);
    for (int64_t i = range.begin; i < range.end; ++i) body(i);
  });
}

// One batch on its way into the device tier.
class Staging {
 public:
  Staging(Parallel* parallel, const CachedTable& table, Standing standing)
      : parallel_(parallel),
        table_(table),
        view_(table.view),
        row_bytes_(RowBytes(table.view)),
        recomputed_(standing == Standing::kRecomputed),
        now_(view_.counters[kStaged] + 1) {}

  // *checksum becomes that of the ids.
  bool Run(const IdsView& ids, uint32_t* checksum) {
    // The memory of the last one serves this one.
    table_.store->SetStaged(nullptr);
    const auto staged = std::make_shared<StagedBatch>(ids);
    if (!staged->ok()) return false;
    TierBatch batch{staged->words(), staged->slots(), 0, 0};
    if (!FindMissingAndTouch(parallel_, view_, table_.rules.keys, ids,
                             static_cast<uint32_t>(now_), &missing_, &batch)) {
      return false;
    }
    *checksum = batch.digest;
    if (!missing_.empty() && !Bring()) return false;
    if (!missing_.empty()) {
      FindAdmitted(view_.index, table_.rules.keys, ids, batch.slots);
    }
    view_.counters[kStaged] = now_;
    if (!recomputed_) Finish(batch.resident);
    ++*table_.generation;
    staged->Finish(*view_.layout_version, *table_.generation,
                   !recomputed_ && table_.store->reserved() == 0);
    table_.store->SetStaged(staged);
    return true;
  }

 private:
  // Gives the missing keys slots, with their rows.
  bool Bring() {
    const int64_t count = static_cast<int64_t>(missing_.size());
    const Scratch rows(count * row_bytes_);
    const Scratch found(count);
    if (!rows.ok() || !found.ok()) return false;
    Fetch(rows.As<char>(), found.As<uint8_t>());
    MakeRoom();
    Admit(rows.As<char>(), found.As<uint8_t>());
    return true;
  }

  // Reads the missing rows; the keys to admit are those that were not lost.
  void Fetch(char* rows, uint8_t* found) {
    RowMover& mover = table_.store->mover();
    const Status status =
        recomputed_ ? mover.Peek(Span(missing_), rows, found, Access::kTrain)
                    : mover.Take(Span(missing_), rows, found, &report_);
    if (!status.ok()) table_.store->Report(status);
    admitted_.reserve(missing_.size());
    for (size_t i = 0; i < missing_.size(); ++i) {
      if (found[i] != kRowFailed) admitted_.push_back(static_cast<int64_t>(i));
    }
  }

  // Evicts rows until the keys to admit have slots; fewer where dirty rows
  // cannot be written down.
  void MakeRoom() {
    const int64_t used = static_cast<int64_t>(view_.counters[kSlotsUsed]);
    const int64_t unused = view_.capacity - used;
    const int64_t wanted = static_cast<int64_t>(admitted_.size());
    const uint32_t now = static_cast<uint32_t>(now_);
    // An older table has other clocks than those that the queue is for.
    std::vector<TierVictim>& queue = table_.store->victims();
    victims_ = recomputed_
                   ? ChooseVictims(view_, now, wanted - unused, Victims::kAny)
                   : TakeVictims(view_, now, wanted - unused, &queue);
    if (!WriteBack()) {
      queue.clear();
      victims_ = ChooseVictims(view_, now, wanted - unused, Victims::kClean);
    }
    const int64_t room = unused + static_cast<int64_t>(victims_.size());
    slots_.reserve(static_cast<size_t>(std::min(room, wanted)));
    for (int64_t i = 0; i < std::min(unused, wanted); ++i) {
      slots_.push_back(static_cast<int32_t>(used + i));
    }
    slots_.insert(slots_.end(), victims_.begin(), victims_.end());
    view_.counters[kSlotsUsed] +=
        static_cast<uint64_t>(std::min(unused, wanted));
  }

  // Hands over the dirty rows among the victims; whether they are taken.
  bool WriteBack() {
    std::vector<int32_t> dirty;
    for (const int32_t slot : victims_) {
      if (view_.residency[slot].state == kSlotDirty) dirty.push_back(slot);
    }
    // A recomputed batch has handed them over already.
    if (dirty.empty() || recomputed_) return true;
    const int64_t count = static_cast<int64_t>(dirty.size());
    AlignedBuffer rows;
    std::vector<Key> keys(dirty.size());
    if (const Status memory = rows.Resize(count * row_bytes_); !memory.ok()) {
      table_.store->Report(memory);
      return false;
    }
    for (size_t i = 0; i < dirty.size(); ++i) {
      keys[i] = SlotKey(view_, dirty[i]);
    }
    ForRows(parallel_, count, [&](int64_t i) {
      std::memcpy(rows.data() + i * row_bytes_,
                  view_.Row(dirty[static_cast<size_t>(i)]),
                  static_cast<size_t>(row_bytes_));
    });
    const bool taken =
        table_.store->mover().Write(std::move(keys), std::move(rows)).ok();
    written_ = taken ? count : 0;
    return taken;
  }

  void Admit(const char* rows, const uint8_t* found) {
    for (const int32_t slot : victims_) {
      reserved_ -= view_.IsReserved(slot) ? 1 : 0;
      EvictSlot(view_, slot);
    }
    const size_t count = std::min(admitted_.size(), slots_.size());
    for (size_t i = 0; i < count; ++i) {
      const auto from = static_cast<size_t>(admitted_[i]);
      const SlotState state =
          found[from] == kRowFound ? kSlotClean : kSlotReserved;
      reserved_ += state == kSlotReserved ? 1 : 0;
      AdmitKey(view_, missing_[from], slots_[i], state,
               static_cast<uint32_t>(now_));
    }
    ForRows(parallel_, static_cast<int64_t>(count), [&](int64_t i) {
      const int64_t from = admitted_[static_cast<size_t>(i)];
      if (found[from] != kRowFound) return;
      std::memcpy(view_.Row(slots_[static_cast<size_t>(i)]),
                  rows + from * row_bytes_, static_cast<size_t>(row_bytes_));
    });
  }

  void Finish(int64_t resident) const {
    table_.store->mover().EndStage(resident +
                                   static_cast<int64_t>(slots_.size()));
    table_.store->reserved() += reserved_;
    TierFigures& figures = table_.store->figures();
    figures.hits += resident;
    figures.misses += static_cast<int64_t>(missing_.size());
    figures.prefetched += report_.prefetched;
    figures.stalls += report_.waited ? 1 : 0;
    figures.victims += static_cast<int64_t>(victims_.size());
    figures.write_backs += written_;
  }

  Parallel* parallel_;
  const CachedTable& table_;
  const TableView& view_;
  int64_t row_bytes_;
  bool recomputed_;
  uint64_t now_;  // the number of this batch
  std::vector<Key> missing_;
  std::vector<int64_t> admitted_;  // numbers in missing_
  std::vector<int32_t> victims_;
  std::vector<int32_t> slots_;  // for admitted_, as far as there is room
  int64_t written_ = 0;
  int64_t reserved_ = 0;  // slots reserved now that were not before
  TakeReport report_;
};

TableStamp Stamp(const CachedTable& table) {
  return {table.nonce, *table.generation};
}

// Whether the operation may be done on this table now; counts it if not. The
// Store's operations() is held.
bool MayChange(const CachedTable& table, Operation operation) {
  if (table.store != nullptr &&
      table.store->Judge(Stamp(table), operation, 0, table.run) ==
          Standing::kCurrent) {
    return true;
  }
  ++table.view.counters[kStale];
  return false;
}

// Whether the batch may be staged. The Store's operations() is held.
Standing JudgeStage(const CachedTable& table, const IdsView& ids) {
  const auto judge = [&](uint64_t digest) {
    return table.store->Judge(Stamp(table), Operation::kStage, digest,
                              table.run);
  };
  // Of the newest table the ids do not matter, and they take time to read.
  const Standing standing = judge(0);
  if (standing == Standing::kCurrent) return standing;
  return judge(Digest(ids, ScanIds(ids, {0, ids.size})));
}

bool MayRead(const CachedTable& table) {
  return table.store != nullptr &&
         table.store->MayRead(Stamp(table), table.run);
}

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
    if (rules.Reject(id.id(), id.table()) < 0) continue;
    const Key key = rules.MakeKey(id.id(), id.table());
    const int32_t slot = FindSlot(view.index, key, HashKey(key));
    view.counters[kUnstaged] += slot < 0 ? 1 : 0;
    if (slot < 0) continue;
    const uint64_t is_new = view.IsReserved(slot) ? 1 : 0;
    view.counters[kRows] += is_new;
    view.counters[kInserts] += is_new;
    view.residency[slot].state = kSlotDirty;
    std::memcpy(view.Row(slot), rows + i * view.row_words,
                static_cast<size_t>(RowBytes(view)));
  }
}

// Writes every dirty row of a current table to the Store; operations() is held.
bool WriteDirty(const CachedTable& table) {
  const TableView& view = table.view;
  const int64_t row_bytes = RowBytes(view);
  const auto most =
      static_cast<size_t>(std::max<int64_t>(1, kFlushBytes / row_bytes));
  // The mover tells of its error itself.
  if (table.store->Judge(Stamp(table), Operation::kFlush, 0, table.run) !=
          Standing::kCurrent ||
      !table.store->mover().Drain().ok()) {
    return false;
  }
  std::vector<Key> keys;
  std::vector<char> rows;
  Status status;
  const auto put = [&] {
    status = table.store->store()->Put(Span(keys), rows.data());
    keys.clear();
    rows.clear();
  };
  const int64_t used = static_cast<int64_t>(view.counters[kSlotsUsed]);
  for (int64_t slot = 0; slot < used && status.ok(); ++slot) {
    if (view.residency[slot].state != kSlotDirty) continue;
    const char* const row = reinterpret_cast<const char*>(view.Row(slot));
    keys.push_back(SlotKey(view, static_cast<int32_t>(slot)));
    rows.insert(rows.end(), row, row + row_bytes);
    if (keys.size() == most) put();
  }
  if (status.ok() && !keys.empty()) put();
  if (!status.ok()) table.store->Report(status);
  return status.ok();
}

}  // namespace

std::shared_ptr<TableStore> StoreOf(const std::string& name) {
  return FindStore(name);
}

bool Stage(Parallel* parallel, const CachedTable& table, const IdsView& ids) {
  if (table.store == nullptr) {
    ++table.view.counters[kStale];
    return true;
  }
  const MutexLock lock(table.store->operations());
  const Standing standing = JudgeStage(table, ids);
  if (standing == Standing::kStale) {
    ++table.view.counters[kStale];
    return true;
  }
  Staging staging(parallel, table, standing);
  uint32_t checksum = 0;
  if (!staging.Run(ids, &checksum)) return false;
  if (standing == Standing::kCurrent) {
    table.store->Advance(Operation::kStage, Digest(ids, checksum), table.run);
  }
  return true;
}

bool Prefetch(Parallel* parallel, const CachedTable& table,
              const IdsView& ids) {
  if (table.store == nullptr) return true;
  const MutexLock lock(table.store->operations());
  // An older table lacks other keys: what it asks for may be in the device tier
  // of the newest, where rows change.
  if (table.store->Judge(Stamp(table), Operation::kStage, 0, table.run) !=
      Standing::kCurrent) {
    return true;
  }
  std::vector<Key> missing;
  if (!FindMissing(parallel, table.view.index, table.rules.keys, ids,
                   &missing)) {
    return false;
  }
  const int64_t taken = table.store->mover().Prefetch(Span(missing));
  table.store->figures().refused +=
      static_cast<int64_t>(missing.size()) - taken;
  return true;
}

bool UpdateCached(Parallel* parallel, const CachedTable& table,
                  const UpdateArgs& args) {
  if (!args.apply) return true;
  if (table.store == nullptr) {
    ++table.view.counters[kStale];
    return true;
  }
  const MutexLock lock(table.store->operations());
  if (!MayChange(table, Operation::kUpdate)) return true;
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
  const bool stale = !MayRead(table);
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
  // A step of before the last load_snapshot may still run: the table that came
  // of it is not told of that.
  if (table.store == nullptr || table.store->nonce() != table.nonce) {
    return true;
  }
  TierFigures& figures = table.store->figures();
  figures.stale += stale ? 1 : 0;
  figures.unstaged += stale ? 0 : unstaged;
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
  if (keys.empty() || table.store == nullptr) return true;
  const MutexLock lock(table.store->operations());
  if (!MayRead(table)) return true;
  const int64_t row_bytes = RowBytes(table.view);
  const Scratch fetched(static_cast<int64_t>(keys.size()) * row_bytes);
  if (!fetched.ok()) return false;
  std::vector<uint8_t> found(keys.size());
  const Status status = table.store->mover().Peek(
      Span(keys), fetched.As<char>(), found.data(), Access::kEvaluate);
  if (!status.ok()) table.store->Report(status);
  for (size_t i = 0; i < keys.size(); ++i) {
    if (found[i] != kRowFound) continue;
    slots[positions[i]] = 0;
    std::memcpy(rows + positions[i] * table.view.row_words,
                fetched.As<char>() + static_cast<int64_t>(i) * row_bytes,
                static_cast<size_t>(row_bytes));
  }
  return true;
}

bool WriteCachedRows(Parallel* parallel, const CachedTable& table,
                     const IdsView& ids, const uint32_t* rows) {
  const uint32_t before = *table.generation;
  if (!Stage(parallel, table, ids)) return false;
  if (*table.generation == before) return true;  // stale, and counted
  const MutexLock lock(table.store->operations());
  if (!MayChange(table, Operation::kWrite)) return true;
  const ReservedRows reserved(table);
  WriteStagedRows(table, ids, rows);
  ++*table.generation;
  table.store->Advance(Operation::kWrite, 0, table.run);
  return true;
}

bool WriteDown(const CachedTable& table) {
  const MutexLock lock(table.store->operations());
  return WriteDirty(table);
}

void Flush(const CachedTable& table, SlotResidency* residency,
           uint32_t* generation) {
  const MutexLock lock(table.store->operations());
  if (!WriteDirty(table)) return;
  const int64_t used = static_cast<int64_t>(table.view.counters[kSlotsUsed]);
  for (int64_t slot = 0; slot < used; ++slot) {
    uint32_t& state = residency[slot].state;
    state = state == kSlotDirty ? kSlotClean : state;
  }
  ++*generation;
  table.store->Advance(Operation::kFlush, 0, table.run);
}

}  // namespace oneemb
