#include "tier/cached_table.h"

#include <algorithm>
#include <utility>

#include "core/counters.h"

namespace oneemb {

struct StageMemory {
  MissingKeys missing;
  TakenRows taken;  // of missing
  VictimList victims;

  // Empty again, but for the memory. Rows are let go.
  void Clear() {
    missing.memory.clear();
    missing.UseMemory();
    missing.fingerprint = {};
    taken.Clear();
    victims.Clear();
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
  ~Staging() {
    tier_->LetGo(&work_.taken);
    work_.Clear();
  }
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  // *digest becomes that of the batch.
  bool Run(uint64_t* digest) {
    if (!tier_->FindMissingAndTouch(now(), &work_.missing, digest)) {
      return false;
    }
    missed_ = wanted();
    if (missed_ > 0 && !Bring()) return false;
    tier_->counters()[kStaged] = now_;
    if (!recomputed_ && !Finish()) return false;
    ++*tier_->generation();
    tier_->EndStage(!recomputed_ && store_->reserved() == 0);
    return true;
  }

 private:
  uint32_t now() const { return static_cast<uint32_t>(now_); }
  int64_t used() const { return tier_->slots_used(); }
  int64_t unused() const { return tier_->capacity() - used(); }
  int64_t wanted() const { return work_.missing.count; }

  // Gives the missing keys slots, with their rows.
  bool Bring() {
    RowMover& mover = store_->mover();
    MissingKeys* const missing = &work_.missing;
    const bool ahead = !recomputed_ && mover.IsAhead(missing->fingerprint,
                                                     wanted(), tier_->memory());
    // Before the device has other things to do.
    if (!ahead && !tier_->ReadMissing(missing)) return false;
    if (!tier_->ExpectVictims(now(), wanted() - unused())) return false;
    const bool taken = ahead && mover.TakeAhead(missing->fingerprint, wanted(),
                                                tier_->memory(), &work_.taken);
    if (!taken) {
      if (!tier_->ReadMissing(missing)) return false;
      Fetch();
    }
    return MakeRoom() && Admit();
  }

  // Finds the missing rows; the keys to admit are those that were not lost.
  void Fetch() {
    RowMover& mover = store_->mover();
    const Status status =
        recomputed_
            ? mover.Peek(work_.missing.span(), Access::kTrain, tier_->memory(),
                         &work_.taken)
            : mover.Take(work_.missing.span(), tier_->memory(), &work_.taken);
    if (!status.ok()) {
      store_->Report(status);
      DropLost();
    }
  }

  // Keys whose rows cannot be had stay out.
  void DropLost() {
    RowList& list = work_.taken.own;
    size_t kept = 0;
    for (size_t i = 0; i < list.rows.size(); ++i) {
      if (list.found[i] == kRowFailed) {
        --work_.taken.absent;
        continue;
      }
      work_.missing.keys[kept] = work_.missing.keys[i];
      list.rows[kept] = list.rows[i];
      ++kept;
    }
    work_.missing.count = static_cast<int64_t>(kept);
  }

  // Chooses what has to go until the keys to admit have slots; fewer where
  // dirty rows cannot be written down.
  bool MakeRoom() {
    // None too: more were expected if some rows turned out to be lost.
    const int64_t lacking = std::max<int64_t>(0, wanted() - unused());
    VictimList* const victims = &work_.victims;
    // An older table has other clocks than those that the queue is for, and its
    // rows were written down already.
    if (recomputed_) {
      return tier_->ChooseVictims(now(), lacking, Victims::kAny, victims);
    }
    std::vector<TierVictim>* const queue = &store_->victims();
    if (!tier_->TakeVictims(now(), lacking, queue, victims)) return false;
    if (CanWriteBack()) return true;
    queue->clear();
    return tier_->ChooseVictims(now(), lacking, Victims::kClean, victims);
  }

  // Gets room for the dirty rows of the victims.
  bool CanWriteBack() {
    const auto most = static_cast<int64_t>(work_.victims.dirty.size());
    if (most == 0) return true;
    if (const Status memory =
            dirty_rows_.Resize(most * tier_->row_bytes(), tier_->memory());
        !memory.ok()) {
      store_->Report(memory);
      return false;
    }
    if (store_->mover().AwaitRoom(most).ok()) return true;
    dirty_rows_ = AlignedBuffer();
    return false;
  }

  bool Admit() {
    VictimList& victims = work_.victims;
    const int64_t num_unused = std::min(unused(), wanted());
    const Exchange exchange{&dirty_rows_, used(), num_unused,
                            work_.missing.span(), work_.taken.rows()};
    if (!tier_->Admit(exchange, now(), &victims)) return false;
    written_ = recomputed_ ? 0 : static_cast<int64_t>(victims.dirty.size());
    if (written_ > 0) {
      store_->mover().Write(std::move(victims.dirty), std::move(dirty_rows_),
                            std::move(victims.arriving));
    }
    admitted_ = victims.count + num_unused;
    tier_->counters()[kSlotsUsed] += static_cast<uint64_t>(num_unused);
    return true;
  }

  // How many of the admitted keys have no row.
  int64_t NewlyReserved() const {
    if (admitted_ == wanted()) return work_.taken.absent;
    const char* const* const rows = work_.taken.list().rows.data();
    return std::count(rows, rows + admitted_, nullptr);
  }

  bool Finish() {
    int64_t resident = 0;
    if (!tier_->CountTouched(&resident)) return false;
    store_->reserved() += NewlyReserved() - work_.victims.reserved;
    TierFigures& figures = store_->figures();
    figures.hits += resident;
    figures.misses += missed_;
    figures.prefetched += work_.taken.prefetched;
    figures.stalls += work_.taken.waited ? 1 : 0;
    figures.victims += work_.victims.count;
    figures.write_backs += written_;
    // First, so that on the host it is the mover that frees them.
    tier_->LetGo(&work_.taken);
    store_->mover().EndStage(resident + admitted_);
    return true;
  }

  DeviceTier* tier_;
  TableStore* store_;
  bool recomputed_;
  uint64_t now_;  // the number of this batch
  StageMemory& work_;
  AlignedBuffer dirty_rows_;  // of victims, on their way down
  int64_t missed_ = 0;
  int64_t admitted_ = 0;
  int64_t written_ = 0;
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
  MissingKeys& missing = MemoryOf(table.store.get())->missing;
  // Of an older table too, which becomes what it became then.
  if (!table.tier->FindMissingAhead(&missing)) return false;
  // An older table lacks other keys: what it asks for may be in the device tier
  // of the newest, where rows change.
  if (table.store->Judge(Stamp(table), Operation::kStage, 0, table.run) !=
      Standing::kCurrent) {
    return true;
  }
  const int64_t taken = table.store->mover().Prefetch(
      missing.span(), table.tier->memory(), missing.fingerprint);
  table.store->figures().refused += missing.count - taken;
  return true;
}

void ReadBelow(const TieredTable& table, const std::vector<Key>& keys,
               TakenRows* rows) {
  rows->own.Begin(static_cast<int64_t>(keys.size()), kRowAbsent,
                  table.tier->memory());
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
