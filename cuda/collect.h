// Slots of a cached table on a GPU, collected in order: those that are to go,
// and those that are to be written down.
#pragma once

#include <cstdint>

#include "core/residency.h"
#include "core/table_view.h"
#include "cuda/launch.h"
#include "cuda/tile_sums.h"

namespace oneemb::gpu {

// Ages from here on count as one: as far as the histogram goes.
constexpr uint32_t kOldestAge = 65535;

// What is in a slot in use.
struct SlotDescription {
  uint64_t id;
  uint16_t table;
  uint16_t state;  // SlotState
  int32_t slot;
};

// How many slots were collected, and how many of them are of a kind.
struct SlotCounts {
  uint32_t all;
  uint32_t dirty;
  uint32_t reserved;
};

// Which of the slots that are older than what is in use go.
struct VictimPlan {
  uint32_t age;   // all that are older
  uint32_t rest;  // and so many of that age, in order of slots
};

// Sums of pairs over tiles, while other blocks find theirs.
struct PairScan {
  uint32_t* next_tile;
  TileSums sums[2];
};

// Room to collect slots in, on the device.
struct CollectSpace {
  // Zeros, each time: `zero_bytes` from `bins` on.
  uint32_t* bins;  // [kOldestAge + 1]: slots by age
  VictimPlan* plan;
  PairScan collect;
  PairScan rank;
  int64_t zero_bytes;
  // Anything.
  SlotCounts* counts;
  SlotDescription* slots;
  int32_t* dirty_ranks;  // of those: the number among dirty ones, or -1
};
// For `most` slots of a tier of so many.
CollectSpace TakeCollectSpace(int64_t capacity, int64_t most,
                              Workspace* workspace);

// Before anything is collected, and before it is again.
cudaError_t ClearCollectSpace(cudaStream_t stream, const CollectSpace& space);

// Collects `count` of the slots below `used`, or as many as may be evicted: the
// longest unused ones (oneemb::ChooseVictims). To memory of the host go their
// counts, and the keys of dirty ones.
cudaError_t CollectVictims(cudaStream_t stream, const TableView& table,
                           int64_t used, uint32_t now, int64_t count,
                           Victims which, const CollectSpace& space,
                           SlotCounts* counts, Key* dirty);
// Collects none.
cudaError_t CollectNothing(cudaStream_t stream, const CollectSpace& space);

// Collects the first `most` dirty slots from `first` up to `end`; *counts.all
// becomes how many there are.
cudaError_t CollectDirty(cudaStream_t stream, const TableView& table,
                         int64_t first, int64_t end, int64_t most,
                         const CollectSpace& space);

}  // namespace oneemb::gpu
