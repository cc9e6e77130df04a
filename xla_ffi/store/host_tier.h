// All rows of a store in host memory: the tier below the device when there is
// no SSD.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "store/crew.h"
#include "store/key.h"
#include "store/pages.h"
#include "store/row_arena.h"
#include "store/row_index.h"
#include "store/status.h"

namespace oneemb {

struct HostTierOptions {
  // 4 ... 65536.
  int64_t row_bytes = 0;
  // An upper bound of all memory that is kept: rows, index, and what lies
  // beside them. What a call needs while it runs comes on top: 50 bytes a new
  // key.
  int64_t budget_bytes = INT64_MAX;
};

// kInvalidArgument, naming the option, when one cannot be used.
Status CheckHostTierOptions(const HostTierOptions& options);

// Not thread-safe; const calls may run at the same time as each other. Rows are
// packed, row_bytes each.
class HostTier {
 public:
  // The crew takes a share of large batches.
  static Status Open(const HostTierOptions& options,
                     std::unique_ptr<HostTier>* tier,
                     PageSource* pages = PageSource::System(),
                     Crew* crew = Crew::Get());

  // found[i] = 1 and row i copied, or 0 and row i as it was.
  void Fetch(const Key* keys, int64_t n, char* rows, uint8_t* found) const;
  // Adds rows or overwrites them, in order: of a key that occurs twice, the
  // later row stays. kNoSpace when the budget would be exceeded, a new key that
  // occurs twice counting twice; kNoMemory: nothing has changed.
  Status Put(const Key* keys, const char* rows, int64_t n);
  // erased[i] = 1 where there was a row.
  void Erase(const Key* keys, int64_t n, uint8_t* erased);
  // The rows from *cursor (0 to begin) on, at most `most` of them. Returns how
  // many and moves *cursor; 0 at the end. Every row is met once as long as
  // nothing is changed in between.
  int64_t Scan(uint64_t* cursor, int64_t most, Key* keys, char* rows) const;
  void Clear();

  int64_t size() const { return index_.size(); }
  // All memory that it holds; at most the budget.
  int64_t bytes() const;

 private:
  struct NewRows;

  HostTier(const HostTierOptions& options, PageSource* pages, Crew* crew);
  int64_t BytesWith(const NewRows& fresh, uint64_t slots) const;
  Status Reserve(const NewRows& fresh);
  void CopyRows(const std::vector<uint64_t>& slots, const char* rows);
  Status FindOrAdd(const Key* keys, int64_t n, NewRows* fresh, uint64_t* slots);
  uint64_t TakeSlot();
  void FreeSlot(uint64_t slot);

  const HostTierOptions options_;
  Crew* const crew_;
  RowIndex index_;
  RowArena arena_;
  // Slots below were in use at some time; those which no longer are form a
  // list, each holding the next in its first bytes.
  uint64_t slots_ = 0;
  uint64_t num_free_ = 0;
  uint32_t first_free_ = 0;
};

}  // namespace oneemb
