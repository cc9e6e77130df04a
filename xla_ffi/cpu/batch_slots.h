// From the lookups of an update to one array of slots over all positions.
#pragma once

#include <cstdint>
#include <vector>

#include "core/bucket.h"
#include "cpu/gradient_sum.h"
#include "cpu/insert.h"
#include "cpu/update.h"

namespace oneemb {

// What can be told of the slots of a batch.
struct SlotReport {
  // Whether ids, tables and slots are those that the lookups saw.
  bool intact;
  // The lowest and the highest slot, kSlotMissing and its like included.
  int32_t lowest;
  int32_t highest;

  // Whether all of them may be used with a table of `rows` rows.
  bool Within(int64_t rows) const {
    return lowest >= kSlotBadTable && highest < rows;
  }
};

// The lookups of one update, laid end to end: microbatches and lookups in the
// order in which they were given.
class FlatBatch {
 public:
  explicit FlatBatch(const std::vector<UpdateBatch>& batches);

  int64_t size() const { return size_; }
  const std::vector<GradientBatch>& gradients() const { return gradients_; }

  // The id and the table id at a position.
  uint64_t Id(int64_t position) const;
  int32_t Table(int64_t position) const;

  // Whether every lookup saw the layout `version`.
  bool SawLayout(uint64_t version) const;
  // Whether all lookups saw one and the same layout.
  bool SawOneLayout() const;

  // Copies what the lookups reported and looks it over on the way.
  SlotReport CopySlots(Parallel* parallel, int32_t* slots) const;
  // Searches the index again.
  void ProbeSlots(Parallel* parallel, const IndexView& index,
                  const KeyRules& rules, int32_t* slots) const;

 private:
  const UpdateBatch& BatchOf(int64_t position, int64_t* begin) const;

  const std::vector<UpdateBatch>& batches_;
  std::vector<GradientBatch> gradients_;
  int64_t size_ = 0;
};

// Gives every position that is kSlotMissing a slot, in order of first
// occurrence; those that find the table full stay missing. Returns how many
// stayed.
int64_t InsertMissing(const FlatBatch& batch, const KeyRules& rules,
                      InsertCursor* cursor, int32_t* slots);

}  // namespace oneemb
