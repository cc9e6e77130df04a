// A batch whose positions are sorted by row, so that gradients can be summed:
// what update and global_norm begin with.
#pragma once

#include <cstdint>

#include "core/table_view.h"
#include "cuda/place.h"
#include "cuda/reduce.cuh"

namespace oneemb::gpu {

// What it keeps in the workspace.
struct SortedBatch {
  PlaceArgs place;
  ReduceArgs reduce;
  int64_t zero_bytes;
};

// Takes its arrays, for `n` positions of keys below `num_keys`; the workspace
// is at its beginning.
inline void TakeSortedBatch(const TableRules& rules, int64_t n,
                            int64_t num_keys, Workspace* workspace,
                            SortedBatch* batch) {
  TakePlaceZeros(n, num_keys, rules.keys.shared_keys, workspace, &batch->place);
  batch->reduce.tickets = workspace->Take<uint32_t>(PartialCount(n));
  batch->zero_bytes = workspace->used();
  TakePlaceRest(n, workspace, &batch->place);
  batch->reduce.partials =
      workspace->Take<float>(PartialCount(n) * rules.embedding_dim);
}

// Sorts what Place has placed; then batch->reduce lacks only what is optional.
inline cudaError_t SortBatch(cudaStream_t stream, const TableRules& rules,
                             int64_t n, SortedBatch* batch) {
  const PlaceArgs& place = batch->place;
  ReduceArgs& reduce = batch->reduce;
  reduce.batch = place.batch;
  reduce.n = n;
  reduce.sentinel = place.sort.sentinel;
  reduce.shape = ShapeRows(rules.embedding_dim, RowWidth(rules.embedding_dim));
  ShareWindows(&reduce);
  reduce.active = &place.state->active;
  return Sort(stream, place.sort,
              reinterpret_cast<const uint32_t*>(place.codes), reduce.active,
              &reduce.entries);
}

}  // namespace oneemb::gpu
