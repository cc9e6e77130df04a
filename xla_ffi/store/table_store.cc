#include "store/table_store.h"

#include <map>
#include <random>
#include <utility>

namespace oneemb {
namespace {

struct Registry {
  Mutex mutex;
  std::map<std::string, std::shared_ptr<TableStore>> stores
      ONEEMB_GUARDED_BY(mutex);
};

// Never destroyed: XLA's threads may outlive static objects.
Registry& TheRegistry() {
  static Registry* const registry = new Registry;
  return *registry;
}

// Random, and not 0, which is what a table without a Store has.
uint64_t NewNonce() {
  std::random_device random;
  uint64_t nonce = 0;
  while (nonce == 0) nonce = (uint64_t{random()} << 32) | random();
  return nonce;
}

// Who still has it finds its table stale.
void LetGo(std::shared_ptr<TableStore> store) {
  store->Retire();
  // A fork can't end what is the parent's: it stays as it is.
  if (store->Forked()) (void)new std::shared_ptr<TableStore>(std::move(store));
}

}  // namespace

void TierFigures::Reset() {
  hits = 0;
  misses = 0;
  prefetched = 0;
  refused = 0;
  stalls = 0;
  victims = 0;
  write_backs = 0;
  unstaged = 0;
  stale = 0;
}

uint32_t TableStore::generation() const {
  const MutexLock lock(mutex_);
  return history_.generation();
}

Standing TableStore::Judge(TableStamp stamp, Operation operation,
                           uint64_t digest, int64_t run) const {
  if (stamp.nonce != nonce_) return Standing::kStale;
  const MutexLock lock(mutex_);
  if (ended_) return Standing::kStale;
  return history_.Judge(stamp.generation, operation, digest, run);
}

bool TableStore::MayRead(TableStamp stamp, int64_t run) const {
  if (stamp.nonce != nonce_) return false;
  const MutexLock lock(mutex_);
  return !ended_ && history_.MayRead(stamp.generation, run);
}

void TableStore::Advance(Operation operation, uint64_t digest, int64_t run) {
  const MutexLock lock(mutex_);
  history_.Advance(operation, digest, run);
}

std::shared_ptr<const StagedBatch> TableStore::staged() const {
  const MutexLock lock(mutex_);
  return staged_;
}

void TableStore::SetStaged(std::shared_ptr<const StagedBatch> batch) {
  const MutexLock lock(mutex_);
  // The one before goes when the lock is free again.
  staged_.swap(batch);
}

// The mover's writer may wait for a device, and that for an answer of somebody
// who wants operations(): most of it is written before.
void TableStore::DrainAhead() {
  {
    const MutexLock operations(operations_);
    if (retired_) return;
  }
  (void)mover_.Drain().ok();
}

Status TableStore::Replace(const std::string& folder) {
  DrainAhead();
  const MutexLock operations(operations_);
  if (retired_) {
    return {StatusKind::kUnavailable, folder + ": its Store was closed"};
  }
  // What can't be written now never will be: nobody asks for it any more.
  (void)mover_.Drain().ok();
  ONEEMB_RETURN_IF_ERROR(store_->LoadFrom(folder, nullptr));
  const MutexLock lock(mutex_);
  ended_ = true;
  return {};
}

void TableStore::Settle(std::vector<Key>* keys, std::vector<char>* rows) {
  DrainAhead();
  const MutexLock operations(operations_);
  if (!retired_ && !mover_.Drain().ok()) mover_.Waiting(keys, rows);
}

void TableStore::Retire() {
  if (Forked()) return;
  {
    const MutexLock operations(operations_);
    const MutexLock lock(mutex_);
    ended_ = true;
    retired_ = true;
  }
  // Whoever comes now leaves the mover alone, and must not have to wait: a step
  // may hold the device for which the mover's reader waits.
  mover_.Close();
  const MutexLock operations(operations_);
  store_.reset();
}

void TableStore::Report(const Status& status) {
  const MutexLock lock(mutex_);
  if (error_.ok()) error_ = status;
}

Status TableStore::TakeError() {
  {
    const MutexLock lock(mutex_);
    if (!error_.ok()) return std::exchange(error_, Status());
  }
  return mover_.TakeError();
}

uint64_t AttachStore(const std::string& name, std::shared_ptr<Store> store,
                     int64_t slots) {
  const auto fresh =
      std::make_shared<TableStore>(std::move(store), slots, NewNonce());
  std::shared_ptr<TableStore> gone;
  {
    Registry& registry = TheRegistry();
    const MutexLock lock(registry.mutex);
    gone = std::exchange(registry.stores[name], fresh);
  }
  if (gone != nullptr) LetGo(std::move(gone));
  return fresh->nonce();
}

std::shared_ptr<TableStore> FindStore(const std::string& name) {
  Registry& registry = TheRegistry();
  const MutexLock lock(registry.mutex);
  const auto found = registry.stores.find(name);
  return found == registry.stores.end() ? nullptr : found->second;
}

void DetachStore(const std::string& name, uint64_t nonce) {
  std::shared_ptr<TableStore> gone;
  {
    Registry& registry = TheRegistry();
    const MutexLock lock(registry.mutex);
    const auto found = registry.stores.find(name);
    if (found == registry.stores.end() || found->second->nonce() != nonce) {
      return;
    }
    gone = std::move(found->second);
    registry.stores.erase(found);
  }
  LetGo(std::move(gone));
}

}  // namespace oneemb
