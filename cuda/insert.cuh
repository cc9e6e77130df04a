// New keys into the index and their rows into the table, once they are
// numbered: the parts of Number and Assign of cuda/place.h that change a table.
#pragma once

#include <cstdint>
#include <cstring>

#include "cuda/index.cuh"
#include "cuda/new_row.cuh"
#include "cuda/place.h"
#include "cuda/warp.cuh"

namespace oneemb::gpu {

// Lets a new key compete for an entry of the index, if there is room for its
// row. Returns its term of the version of the layout.
__device__ inline uint64_t InsertNewKey(const PlaceArgs& a, uint64_t hash,
                                        uint32_t number) {
  const int64_t slot = static_cast<int64_t>(a.state->rows_before) + number;
  if (slot >= a.table.capacity) return 0;
  CompeteForEntry(a.table.index, hash, static_cast<int32_t>(slot));
  return LayoutTerm(hash, static_cast<int32_t>(slot));
}

// Adds the terms of a block's threads to the version of the layout.
__device__ inline void AddVersion(const PlaceArgs& a, uint64_t terms) {
  __shared__ unsigned long long block_terms;
  if (threadIdx.x == 0) block_terms = 0;
  __syncthreads();
  terms = WarpSum64(terms);
  if (Lane() == 0) atomicAdd(&block_terms, terms);
  __syncthreads();
  if (threadIdx.x == 0 && block_terms != 0) {
    AtomicAdd64(a.table.layout_version, block_terms);
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

// Writes the new rows, a thread one 16-byte part after another. The key of the
// next row is on its way meanwhile: as it lies in memory, since to take it
// apart is to wait for it.
template <Draws kDraws>
__device__ void WriteNewRows(const PlaceArgs& a) {
  const RowInitializers rows = a.initializers.View();
  const int64_t inserted = NumInserted(a);
  const int parts = static_cast<int>(CeilDiv(a.table.row_words, 4));
  const int lanes = DrawLanes(parts);
  const int lane = Lane() & (lanes - 1);
  const int64_t groups = int64_t{gridDim.x} * (kBlockThreads / lanes);
  const int64_t thread = int64_t{blockIdx.x} * kBlockThreads + threadIdx.x;
  const int64_t rows_before = static_cast<int64_t>(a.state->rows_before);
  const auto* const keys = reinterpret_cast<const uint4*>(a.new_keys);
  uint4 next{};
  int64_t number = thread / lanes;
  if (number < inserted) next = keys[number];
  for (; number < inserted; number += groups) {
    NewKey key;
    memcpy(&key, &next, sizeof(key));
    if (number + groups < inserted) next = keys[number + groups];
    const int64_t slot = a.table.cached() ? key.slot : rows_before + number;
    const InitialRow<kDraws> initial(rows, key.init_table, key.id);
    for (int part = lane; part < parts; part += lanes) {
      WriteNewWords(initial, a.optimizer, a.embedding_dim, a.table.row_words,
                    static_cast<uint32_t>(part), a.table.Row(slot));
    }
  }
}

}  // namespace oneemb::gpu
