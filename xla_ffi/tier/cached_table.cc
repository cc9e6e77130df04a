#include "tier/cached_table.h"

#include <algorithm>
#include <utility>

#include "core/counters.h"

namespace oneemb {

struct StageMemory {
  std::vector<Key> missing;
  TakenRows taken;  // of missing
  std::vector<SlotEntry> victims;
  std::vector<int32_t> slots;  // for them, as far as there is room
  std::vector<int32_t> dirty;  // of victims

  // Empty again, but for the memory. Rows are let go.
  void Clear() {
    missing.clear();
    taken.Clear();
    victims.clear();
    slots.clear();
    dirty.clear();
  }
};

namespace {

// Bytes written to the Store at once at most.
constexpr int64_t kFlushBytes = int64_t{8} << 20;

KeySpan Span(const std::vector<Key>& keys) {
  return {keys.data(), static_cast<int64_t>(keys.size())};
}

TableStamp Stamp(const TieredTable& table) {
  return {table.nonce, *table.tier->generation()};
}

StageMemory* MemoryOf(TableStore* store) {
  std::shared_ptr<StageMemory>& memory = store->stage_memory();
  if (memory == nullptr) memory = std::make_shared<StageMemory>();
  memory->Clear();
  return memory.get();
}

// One batch on its way into the device tier.
class Staging {
 public:
  Staging(const TieredTable& table, Standing standing)
      : tier_(table.tier),
        store_(table.store.get()),
        recomputed_(standing == Standing::kRecomputed),
        now_(tier_->counters()[kStaged] + 1),
        work_(*MemoryOf(store_)) {}
  ~Staging() { work_.Clear(); }
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  // *digest becomes that of the batch.
  bool Run(uint64_t* digest) {
    int64_t resident = 0;
    if (!tier_->FindMissingAndTouch(static_cast<uint32_t>(now_), &work_.missing,
                                    &resident, digest)) {
      return false;
    }
    missed_ = static_cast<int64_t>(work_.missing.size());
    if (missed_ > 0 && !Bring()) return false;
    tier_->counters()[kStaged] = now_;
    if (!recomputed_) Finish(resident);
    ++*tier_->generation();
    tier_->EndStage(!recomputed_ && store_->reserved() == 0);
    return true;
  }

 private:
  // Gives the missing keys slots, with their rows.
  bool Bring() {
    Fetch();
    return MakeRoom() && Admit();
  }

  // Finds the missing rows; the keys to admit are those that were not lost.
  void Fetch() {
    RowMover& mover = store_->mover();
    const Status status =
        recomputed_
            ? mover.Peek(Span(work_.missing), Access::kTrain, tier_->memory(),
                         &work_.taken)
            : mover.Take(Span(work_.missing), tier_->memory(), &work_.taken);
    if (!status.ok()) {
      store_->Report(status);
      DropLost();
    }
  }

  // Keys whose rows cannot be had stay out.
  void DropLost() {
    size_t kept = 0;
    for (size_t i = 0; i < work_.missing.size(); ++i) {
      if (work_.taken.found[i] == kRowFailed) continue;
      work_.missing[kept] = work_.missing[i];
      work_.taken.rows[kept] = work_.taken.rows[i];
      ++kept;
    }
    work_.missing.resize(kept);
  }

  // Chooses what has to go until the keys to admit have slots; fewer where
  // dirty rows cannot be written down.
  bool MakeRoom() {
    const int64_t used = static_cast<int64_t>(tier_->counters()[kSlotsUsed]);
    const int64_t unused = tier_->capacity() - used;
    const int64_t wanted = static_cast<int64_t>(work_.missing.size());
    const uint32_t now = static_cast<uint32_t>(now_);
    // An older table has other clocks than those that the queue is for.
    std::vector<TierVictim>& queue = store_->victims();
    const int64_t lacking = wanted - unused;
    if (lacking > 0 &&
        !(recomputed_
              ? tier_->ChooseVictims(now, lacking, Victims::kAny,
                                     &work_.victims)
              : tier_->TakeVictims(now, lacking, &queue, &work_.victims))) {
      return false;
    }
    bool written = true;
    if (!WriteBack(&written)) return false;
    if (!written) {
      queue.clear();
      if (!tier_->ChooseVictims(now, lacking, Victims::kClean,
                                &work_.victims)) {
        return false;
      }
    }
    GiveSlots(used, std::min(unused, wanted));
    return true;
  }

  // In order of slots: those in use come first.
  void GiveSlots(int64_t used, int64_t newly_used) {
    work_.slots.reserve(work_.victims.size() + static_cast<size_t>(newly_used));
    for (const SlotEntry& victim : work_.victims) {
      work_.slots.push_back(victim.slot);
      reserved_ -= victim.state == kSlotReserved ? 1 : 0;
    }
    for (int64_t i = 0; i < newly_used; ++i) {
      work_.slots.push_back(static_cast<int32_t>(used + i));
    }
    newly_used_ = newly_used;
  }

  // Hands over the dirty rows among the victims; whether that is possible.
  bool WriteBack(bool* written) {
    if (recomputed_) return true;  // they were handed over already
    std::vector<int32_t>& dirty = work_.dirty;
    std::vector<Key> keys;
    dirty.reserve(work_.victims.size());
    keys.reserve(work_.victims.size());
    for (const SlotEntry& victim : work_.victims) {
      if (victim.state != kSlotDirty) continue;
      dirty.push_back(victim.slot);
      keys.push_back(victim.key);
    }
    if (dirty.empty()) return true;
    const auto count = static_cast<int64_t>(dirty.size());
    AlignedBuffer rows;
    if (const Status memory =
            rows.Resize(count * tier_->row_bytes(), tier_->memory());
        !memory.ok()) {
      store_->Report(memory);
      *written = false;
      return true;
    }
    if (!tier_->ReadRows(dirty, rows.data())) return false;
    *written = store_->mover().Write(std::move(keys), std::move(rows)).ok();
    written_ = *written ? count : 0;
    return true;
  }

  bool Admit() {
    const size_t count = std::min(work_.missing.size(), work_.slots.size());
    const char* const* const rows = work_.taken.rows.data();
    reserved_ += std::count(rows, rows + count, nullptr);
    if (!work_.victims.empty() && !tier_->Evict(work_.victims)) return false;
    const Admissions admissions{static_cast<int64_t>(count),
                                work_.missing.data(), work_.slots.data(), rows};
    if (!tier_->Admit(admissions, static_cast<uint32_t>(now_))) return false;
    tier_->counters()[kSlotsUsed] += static_cast<uint64_t>(newly_used_);
    return true;
  }

  void Finish(int64_t resident) {
    store_->reserved() += reserved_;
    TierFigures& figures = store_->figures();
    figures.hits += resident;
    figures.misses += missed_;
    figures.prefetched += work_.taken.prefetched;
    figures.stalls += work_.taken.waited ? 1 : 0;
    figures.victims += static_cast<int64_t>(work_.victims.size());
    figures.write_backs += written_;
    // First, so that it is the mover that frees them.
    work_.taken.Clear();
    store_->mover().EndStage(resident +
                             static_cast<int64_t>(work_.slots.size()));
  }

  DeviceTier* tier_;
  TableStore* store_;
  bool recomputed_;
  uint64_t now_;  // the number of this batch
  StageMemory& work_;
  int64_t missed_ = 0;
  int64_t newly_used_ = 0;  // slots of them that never were in use
  int64_t written_ = 0;
  int64_t reserved_ = 0;  // slots reserved now that were not before
};

// Whether the batch may be staged; the Store's operations() is held.
bool JudgeStage(const TieredTable& table, Standing* standing) {
  const auto judge = [&](uint64_t digest) {
    return table.store->Judge(Stamp(table), Operation::kStage, digest,
                              table.run);
  };
  // Of the newest table the ids do not matter, and they take time to read.
  *standing = judge(0);
  if (*standing == Standing::kCurrent) return true;
  uint64_t digest = 0;
  if (!table.tier->Digest(&digest)) return false;
  *standing = judge(digest);
  return true;
}

// Writes every dirty row of a current table to the Store; operations() is held.
bool WriteDirty(const TieredTable& table) {
  DeviceTier* const tier = table.tier;
  const int64_t most = std::max<int64_t>(1, kFlushBytes / tier->row_bytes());
  // The mover tells of its error itself.
  if (table.store->Judge(Stamp(table), Operation::kFlush, 0, table.run) !=
          Standing::kCurrent ||
      !table.store->mover().Drain().ok()) {
    return false;
  }
  AlignedBuffer rows;
  if (const Status memory =
          rows.Resize(most * tier->row_bytes(), tier->memory());
      !memory.ok()) {
    table.store->Report(memory);
    return false;
  }
  std::vector<SlotEntry> dirty;
  std::vector<int32_t> slots;
  std::vector<Key> keys;
  for (int64_t cursor = 0;;) {
    if (!tier->FindDirty(&cursor, most, &dirty)) return false;
    if (dirty.empty()) return true;
    slots.clear();
    keys.clear();
    for (const SlotEntry& entry : dirty) {
      slots.push_back(entry.slot);
      keys.push_back(entry.key);
    }
    if (!tier->ReadRows(slots, rows.data())) return false;
    const Status status = table.store->store()->Put(Span(keys), rows.data());
    if (!status.ok()) {
      table.store->Report(status);
      return false;
    }
  }
}

}  // namespace

bool MayChange(const TieredTable& table, Operation operation) {
  if (table.store != nullptr &&
      table.store->Judge(Stamp(table), operation, 0, table.run) ==
          Standing::kCurrent) {
    return true;
  }
  ++table.tier->counters()[kStale];
  return false;
}

bool MayRead(const std::shared_ptr<TableStore>& store, TableStamp stamp,
             int64_t run) {
  return store != nullptr && store->MayRead(stamp, run);
}

void CountLookup(TableStore* store, uint64_t nonce, bool stale,
                 int64_t unstaged) {
  // A step of before the last load_snapshot may still run: the table that came
  // of it is not told of that.
  if (store == nullptr || store->nonce() != nonce) return;
  TierFigures& figures = store->figures();
  figures.stale += stale ? 1 : 0;
  figures.unstaged += stale ? 0 : unstaged;
}

bool Stage(const TieredTable& table) {
  if (table.store == nullptr) {
    ++table.tier->counters()[kStale];
    return true;
  }
  const MutexLock lock(table.store->operations());
  Standing standing = Standing::kStale;
  if (!JudgeStage(table, &standing)) return false;
  if (standing == Standing::kStale) {
    ++table.tier->counters()[kStale];
    return true;
  }
  Staging staging(table, standing);
  uint64_t digest = 0;
  if (!staging.Run(&digest)) return false;
  if (standing == Standing::kCurrent) {
    table.store->Advance(Operation::kStage, digest, table.run);
  }
  return true;
}

bool Prefetch(const TieredTable& table) {
  if (table.store == nullptr) return true;
  const MutexLock lock(table.store->operations());
  // An older table lacks other keys: what it asks for may be in the device tier
  // of the newest, where rows change.
  if (table.store->Judge(Stamp(table), Operation::kStage, 0, table.run) !=
      Standing::kCurrent) {
    return true;
  }
  std::vector<Key>& missing = MemoryOf(table.store.get())->missing;
  if (!table.tier->FindMissing(&missing)) return false;
  const int64_t taken =
      table.store->mover().Prefetch(Span(missing), table.tier->memory());
  table.store->figures().refused +=
      static_cast<int64_t>(missing.size()) - taken;
  return true;
}

void ReadBelow(const TieredTable& table, const std::vector<Key>& keys,
               TakenRows* rows) {
  rows->rows.assign(keys.size(), nullptr);
  if (keys.empty() || table.store == nullptr) return;
  const MutexLock lock(table.store->operations());
  if (!MayRead(table.store, Stamp(table), table.run)) return;
  const Status status = table.store->mover().Peek(Span(keys), Access::kEvaluate,
                                                  table.tier->memory(), rows);
  if (!status.ok()) table.store->Report(status);
}

bool WriteDown(const TieredTable& table) {
  const MutexLock lock(table.store->operations());
  return WriteDirty(table);
}

bool Flush(const TieredTable& table) {
  const MutexLock lock(table.store->operations());
  if (!WriteDirty(table)) return false;
  table.store->Advance(Operation::kFlush, 0, table.run);
  return true;
}

}  // namespace oneemb
