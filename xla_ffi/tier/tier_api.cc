#include "tier/tier_api.h"

#include "tier/cached_table.h"

namespace oneemb {
namespace {

bool MayReadNow(const TieredTable& table) {
  return MayRead(table.store, {table.nonce, *table.tier->generation()},
                 table.run);
}

void Count(const TieredTable& table, bool stale, int64_t unstaged) {
  CountLookup(table.store.get(), table.nonce, stale, unstaged);
}

// The rows change later, when nobody looks at the Store: it is told before.
bool MayChangeRows(const TieredTable& table, Operation operation,
                   bool changes_rows) {
  if (table.store == nullptr) return MayChange(table, operation);
  const MutexLock lock(table.store->operations());
  if (!MayChange(table, operation)) return false;
  if (changes_rows) table.store->Advance(operation, 0, table.run);
  return true;
}

bool MayUpdate(const TieredTable& table, bool changes_rows) {
  return MayChangeRows(table, Operation::kUpdate, changes_rows);
}

bool MayWrite(const TieredTable& table) {
  return MayChangeRows(table, Operation::kWrite, true);
}

}  // namespace

const TierApi* GetTierApi() {
  static constexpr TierApi kApi = {FindStore, Stage,     Prefetch,   WriteDown,
                                   Flush,     ReadBelow, MayReadNow, Count,
                                   MayUpdate, MayWrite};
  return &kApi;
}

}  // namespace oneemb
