// The cells of cuda/place.h: a hash table of the keys of one call that have no
// row, each cell claimed by the first position of its key.
#pragma once

#include <cstdint>

#include "cuda/place.h"

namespace oneemb::gpu {

// A position that has claimed cell c has the code kFirstClaim - c; any other
// has its sort key, which is not negative.
constexpr int32_t kFirstClaim = -8;
// A cell holds 0, or ~ the first position of its key so far, or, when that is
// known, the number of its key, which is below every ~position.

__device__ inline bool SameKey(const PlaceArgs& a, Key key, uint32_t position) {
  const PlacedBatch& placed = a.batch.Find(position);
  const IdsView& ids = placed.batch.ids;
  const int64_t i = position - placed.begin;
  if (ids.Id(i) != key.id) return false;
  return a.keys.shared_keys || ids.Table(i) == key.table;
}

// The code of a position that has claimed the cell of its key.
__device__ inline int32_t Claim(const PlaceArgs& a, Key key, int32_t table,
                                uint32_t position) {
  const uint32_t mask = static_cast<uint32_t>(a.num_cells - 1);
  uint32_t cell = static_cast<uint32_t>(HashKey(key) >> 20) & mask;
  const uint32_t mine = ~position;
  for (int64_t probe = 0; probe < a.num_cells; ++probe) {
    uint32_t* const word = a.cells + cell;
    uint32_t seen = *static_cast<volatile uint32_t*>(word);
    if (seen == 0) seen = atomicCAS(word, 0U, mine);
    if (seen == 0) break;
    if (SameKey(a, key, ~seen)) {
      if (seen < mine) atomicMax(word, mine);
      break;
    }
    cell = (cell + 1) & mask;
  }
  if (a.cell_tables != nullptr) {
    atomicMax(a.cell_tables + cell, ~static_cast<uint32_t>(table));
  }
  return kFirstClaim - static_cast<int32_t>(cell);
}

}  // namespace oneemb::gpu
