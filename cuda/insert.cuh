// New keys into the index and their rows into the table, once they are
// numbered: the parts of Number and Assign of cuda/place.h that change a table.
#pragma once

#include <cstdint>

#include "cuda/index.cuh"
#include "cuda/new_row.cuh"
#include "cuda/place.h"
#include "cuda/warp.cuh"

namespace oneemb::gpu {

// Lets the new keys of a block, from number `begin` on, compete for entries of
// the index, as far as there is room for rows, and adds them to the version of
// the layout; for a whole block.
__device__ inline void InsertNewKeys(const PlaceArgs& a, const uint64_t* hashes,
                                     uint32_t begin, uint32_t count) {
  __shared__ unsigned long long block_version;
  if (threadIdx.x == 0) block_version = 0;
  __syncthreads();
  uint64_t version = 0;
  for (uint32_t k = threadIdx.x; k < count; k += kBlockThreads) {
    const int64_t slot = static_cast<int64_t>(a.state->rows_before) + begin + k;
    if (slot >= a.table.capacity) break;
    CompeteForEntry(a.table.index, hashes[k], static_cast<int32_t>(slot));
    version += LayoutTerm(hashes[k], static_cast<int32_t>(slot));
  }
  version = WarpSum64(version);
  if (Lane() == 0) atomicAdd(&block_version, version);
  __syncthreads();
  if (threadIdx.x == 0 && count > 0) {
    AtomicAdd64(a.table.layout_version, block_version);
  }
}

// The new keys that get a row.
__device__ inline int64_t NumInserted(const PlaceArgs& a) {
  if (a.mode == PlaceMode::kNumber) return 0;
  if (a.table.cached()) return static_cast<int64_t>(a.state->num_new);
  const int64_t room =
      a.table.capacity - static_cast<int64_t>(a.state->rows_before);
  const int64_t wanted = static_cast<int64_t>(a.state->num_new);
  return wanted < room ? wanted : room;
}

// A thread finishes one entry of the index after another.
__device__ inline void FinishEntries(const PlaceArgs& a) {
  const int64_t inserted = NumInserted(a);
  const int64_t threads = int64_t{gridDim.x} * kBlockThreads;
  int64_t number = int64_t{blockIdx.x} * kBlockThreads + threadIdx.x;
  for (; number < inserted; number += threads) {
    const NewKey key = a.new_keys[number];
    const int64_t slot = static_cast<int64_t>(a.state->rows_before) + number;
    const Key found{key.id, key.table};
    FinishEntry(a.table.index, found, HashKey(found),
                static_cast<int32_t>(slot));
  }
  __syncwarp();
}

// Writes the new rows, a thread one 16-byte part after another.
__device__ inline void WriteNewRows(const PlaceArgs& a) {
  const RowInitializers rows = a.initializers.View();
  const int64_t inserted = NumInserted(a);
  const int parts = static_cast<int>(CeilDiv(a.table.row_words, 4));
  int lanes = 1;
  while (lanes < kWarp && lanes < parts) lanes *= 2;
  const int64_t groups = int64_t{gridDim.x} * (kBlockThreads / lanes);
  const int64_t thread = int64_t{blockIdx.x} * kBlockThreads + threadIdx.x;
  for (int64_t number = thread / lanes; number < inserted; number += groups) {
    const NewKey key = a.new_keys[number];
    const int64_t slot =
        a.table.cached() ? key.slot
                         : static_cast<int64_t>(a.state->rows_before) + number;
    for (int part = Lane() % lanes; part < parts; part += lanes) {
      WriteNewWords(rows, a.optimizer, a.embedding_dim, a.table.row_words,
                    key.init_table, key.id, static_cast<uint32_t>(part),
                    a.table.Row(slot));
    }
  }
}

}  // namespace oneemb::gpu
