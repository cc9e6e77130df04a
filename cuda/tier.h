// The device tier of a cached table on a GPU: what cpu/tier.h does on the CPU,
// in pieces between which the host has a look. All arrays are on the device.
#pragma once

#include <cstdint>

#include "core/table_view.h"
#include "cuda/collect.h"
#include "cuda/launch.h"
#include "cuda/place.h"

namespace oneemb::gpu {

// Bytes of workspace of FindMissing, for `n` ids.
int64_t FindMissingSpace(const TableRules& rules, int64_t capacity, int64_t n);

// The keys of a batch that the table lacks, each once, in order of first
// occurrence: place->new_keys[0 .. place->state->num_new). The checksum in
// place->state is that of the batch. Nothing else changes.
cudaError_t FindMissing(cudaStream_t stream, const TableView& table,
                        const TableRules& rules, const IdsView& ids,
                        void* workspace, PlaceArgs* place);

// What FindMissing has found, to memory of the host: the state, and as many
// keys as that says. What is null is left out.
cudaError_t CopyFound(cudaStream_t stream, const PlaceArgs& place,
                      PlaceState* state, Key* keys);

// Clocks of the keys that FindMissing found become `now`; their number, each
// counted once, goes to memory of the host.
cudaError_t TouchFound(cudaStream_t stream, const PlaceArgs& place,
                       uint32_t now, uint32_t* resident);
// Of those that a later batch wants: become AnnouncedClock (core/residency.h),
// by the table's counters on the device, unless they are later.
cudaError_t TouchFoundAhead(cudaStream_t stream, const PlaceArgs& place);

// Rows of slots, one after another, to memory that the device can reach.
cudaError_t CopyRowsOut(cudaStream_t stream, const TableView& table,
                        const int32_t* slots, int64_t count, uint32_t* rows);

// A key, the slot it gets, and its row in memory that the device can reach:
// without one the slot is reserved.
struct SlotAdmission {
  Key key;
  const uint32_t* row;
  int32_t slot;
};

// Rows to rows of an array on the device: rows[i] to to[i], if there is one.
cudaError_t PutRows(cudaStream_t stream, const uint32_t* const* rows,
                    const int32_t* to, int64_t count, int64_t row_words,
                    uint32_t* array);

// Keys that get slots, as far as there are some: those of victims and, behind
// them, unused ones. What is not said to be on the device may be in memory of
// the host, and is quicker to reach where it is not.
struct SlotExchange {
  CollectSpace victims;  // on the device; counts->all of them
  uint32_t* dirty_rows;  // where theirs go, by rank; null: nowhere
  int64_t first_unused;
  int64_t num_unused;
  const NewKey* found_keys;  // on the device; null: `keys`
  const Key* keys;
  const uint32_t* const* rows;
  int64_t count;
  SlotAdmission* admissions;  // [count] on the device, to work in
  uint32_t now;
};

// The index becomes what one thread would have made of it in order of slots,
// and rows go out and in.
cudaError_t ExchangeSlots(cudaStream_t stream, const TableView& table,
                          const SlotExchange& exchange);

// If *flushed, dirty slots become clean in `residency`, of `capacity` slots,
// and *next is the generation after *generation; else it is that one.
cudaError_t MarkClean(cudaStream_t stream, SlotResidency* residency,
                      int64_t capacity, const bool* flushed,
                      const uint32_t* generation, uint32_t* next);

}  // namespace oneemb::gpu
