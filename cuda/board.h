// The books of a cached table where the host sees them: what an operation wants
// to know of a table before it decides, and what it has decided.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/counters.h"
#include "core/table_view.h"
#include "cuda/call_line.h"
#include "cuda/lookup.h"
#include "cuda/place.h"

namespace oneemb::gpu {

struct Board {
  uint64_t counters[kNumCounters];
  uint64_t nonce;
  uint32_t generation;
  // Of an update: whether its scalars let it change anything, whether the
  // caller wants it at all, and what came of its contexts.
  uint32_t active;
  uint32_t apply;
  uint32_t damaged;
  // Positions that have no slot, of an update or a lookup.
  uint32_t unstaged;
  uint32_t stale;  // a lookup that was told so
  // What the host has decided.
  uint32_t verdict;
};
static_assert(sizeof(Board) <= kBoardBytes);

// Where on the device the entries of a board are. Pointers that are null are
// passed over.
struct BoardPlaces {
  uint64_t* counters;
  uint32_t* generation;
  const uint32_t* nonce;  // [2]
  PlaceState* place;
  const bool* apply;
  LookupState* lookup;           // of a lookup that is to find rows
  const LookupState* looked_up;  // of one that has
  bool* verdict;
};

// Fills in a board: the first step of a call.
cudaError_t WriteBoard(cudaStream_t stream, const BoardPlaces& places,
                       Board* board);

// Back to the device: counters and generation if `table`, and the verdict, to
// wherever there is a place for one. `lookup` becomes that of a call that is
// about to find rows.
cudaError_t ReadBoard(cudaStream_t stream, const BoardPlaces& places,
                      bool table, const Board* board);

}  // namespace oneemb::gpu
