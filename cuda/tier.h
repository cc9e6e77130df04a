// The device tier of a cached table on a GPU: what cpu/tier.h does on the CPU,
// in pieces between which the host has a look. All arrays are on the device.
#pragma once

#include <cstdint>

#include "core/table_view.h"
#include "cuda/launch.h"
#include "cuda/place.h"

namespace oneemb::gpu {

// Ages from here on count as one: as far as the histogram goes.
constexpr uint32_t kOldestAge = 65535;

// Bytes of workspace of FindMissing, for `n` ids.
int64_t FindMissingSpace(const TableRules& rules, int64_t capacity, int64_t n);

// The keys of a batch that the table lacks, each once, in order of first
// occurrence: place->new_keys[0 .. place->state->num_new). Unless `now` is
// null, clocks of keys that are there become *now, and place->state->resident
// is their number. The checksum in place->state is that of the batch.
cudaError_t FindMissing(cudaStream_t stream, const TableView& table,
                        const TableRules& rules, const IdsView& ids,
                        const uint32_t* now, void* workspace, PlaceArgs* place);

// Which slots in use are looked for.
struct SlotFilter {
  enum Kind : int32_t {
    kOlder,  // than `age`
    kAged,   // `age`
    kDirty,
  };
  Kind kind;
  uint32_t now;
  uint32_t age;  // 1 to kOldestAge
  Victims which;
};

// Adds to bins[age] how many slots below `used` may be evicted, by age.
cudaError_t CountAges(cudaStream_t stream, const TableView& table, int64_t used,
                      uint32_t now, Victims which, uint32_t* bins);

// Room that CollectSlots works in; zeroed by it.
int64_t CollectSpace(int64_t capacity);

// What is in a slot in use.
struct SlotDescription {
  uint64_t id;
  uint16_t table;
  uint16_t state;  // SlotState
  int32_t slot;
};

// Describes the slots from `first` up to `end` that a filter lets through, in
// order, `most` of them; *count becomes how many there are.
cudaError_t CollectSlots(cudaStream_t stream, const TableView& table,
                         int64_t first, int64_t end, const SlotFilter& filter,
                         int64_t most, void* space, SlotDescription* slots,
                         uint32_t* count);

// Rows of slots, one after another, to memory that the device can reach.
cudaError_t CopyRowsOut(cudaStream_t stream, const TableView& table,
                        const int32_t* slots, int64_t count, uint32_t* rows);

cudaError_t EvictSlots(cudaStream_t stream, const TableView& table,
                       const int32_t* slots, int64_t count);

// A key, the slot it gets, and its row in memory that the device can reach:
// without one the slot is reserved.
struct SlotAdmission {
  uint64_t id;
  const uint32_t* row;
  int32_t slot;
  uint16_t table;
};

// The rows that there are go to their slots.
cudaError_t CopyRowsIn(cudaStream_t stream, const TableView& table,
                       const SlotAdmission* rows, int64_t count);

// The index becomes what one thread would have made of it in order of slots.
// The rows are not copied.
cudaError_t AdmitKeys(cudaStream_t stream, const TableView& table,
                      const SlotAdmission* admissions, int64_t count,
                      uint32_t now);

// If *flushed, dirty slots become clean in `residency`, of `capacity` slots,
// and *next is the generation after *generation; else it is that one.
cudaError_t MarkClean(cudaStream_t stream, SlotResidency* residency,
                      int64_t capacity, const bool* flushed,
                      const uint32_t* generation, uint32_t* next);

}  // namespace oneemb::gpu
