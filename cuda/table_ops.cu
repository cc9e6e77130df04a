#include "core/counters.h"
#include "cuda/index.cuh"
#include "cuda/place.h"
#include "cuda/table_ops.h"
#include "cuda/warp.cuh"

namespace oneemb::gpu {
namespace {

// Calls f(key, hash, slot) for one entry of an index, if it is in use.
template <class F>
__device__ void WithEntry(const IndexView& index, const F& f) {
  const int64_t i = int64_t{blockIdx.x} * kBlockThreads + threadIdx.x;
  if (i >= index.num_buckets * kBucketEntries) return;
  const Bucket& bucket = index.buckets[i / kBucketEntries];
  const int e = static_cast<int>(i % kBucketEntries);
  if (bucket.tags[e] == 0) return;
  const Key key{bucket.ids[e], bucket.tables[e]};
  f(key, HashKey(key), bucket.slots[e]);
}

__global__ __launch_bounds__(kBlockThreads) void CompeteKernel(IndexView from,
                                                               IndexView to) {
  WithEntry(from, [&](Key, uint64_t hash, int32_t slot) {
    CompeteForEntry(to, hash, slot);
  });
}

__global__ __launch_bounds__(kBlockThreads) void FinishKernel(IndexView from,
                                                              IndexView to) {
  WithEntry(from, [&](Key key, uint64_t hash, int32_t slot) {
    FinishEntry(to, key, hash, slot);
  });
}

struct WriteArgs {
  TableView table;
  const SlotPosition* entries;
  int64_t n;
  uint32_t sentinel;
  const uint32_t* rows;
  const uint32_t* step;
  const uint32_t* active;
};

// A warp for every entry that is the last of its row.
__global__ __launch_bounds__(kBlockThreads) void WriteRowsKernel(
    const __grid_constant__ WriteArgs a) {
  const int64_t i = (int64_t{blockIdx.x} * kBlockThreads + threadIdx.x) / kWarp;
  if (i >= a.n || *a.active == 0) return;
  const uint32_t slot = static_cast<uint32_t>(a.entries[i] >> 32);
  if (slot == a.sentinel) return;
  if (i + 1 < a.n && static_cast<uint32_t>(a.entries[i + 1] >> 32) == slot) {
    return;
  }
  const int64_t position = static_cast<uint32_t>(a.entries[i]);
  const uint32_t* const from = a.rows + position * a.table.row_words;
  for (int64_t w = Lane(); w < a.table.row_words; w += kWarp) {
    a.table.Row(slot)[w] = from[w];
  }
  if (Lane() != 0) return;
  if (a.table.cached()) {
    a.table.residency[slot].state = kSlotDirty;
  } else {
    a.table.clock[slot] = *a.step;
  }
}

struct Space {
  PlaceArgs place;
  int64_t zero_bytes;
};

void TakeSpace(const TableRules& rules, int64_t capacity, int64_t n,
               Workspace* workspace, Space* space) {
  TakePlaceZeros(n, capacity, rules.keys.shared_keys, workspace, &space->place);
  space->zero_bytes = workspace->used();
  TakePlaceRest(n, workspace, &space->place);
}

}  // namespace

cudaError_t CreateTable(cudaStream_t stream, const TableView& table) {
  ONEEMB_RETURN_IF_CUDA_ERROR(cudaMemsetAsync(
      table.index.buckets, 0,
      static_cast<size_t>(table.index.num_buckets) * sizeof(Bucket), stream));
  const auto slots = static_cast<size_t>(table.capacity);
  ONEEMB_RETURN_IF_CUDA_ERROR(
      cudaMemsetAsync(table.clock, 0, slots * sizeof(uint32_t), stream));
  if (!table.cached()) return cudaSuccess;
  return cudaMemsetAsync(table.residency, 0, slots * sizeof(SlotResidency),
                         stream);
}

cudaError_t GrowTable(cudaStream_t stream, const TableView& from,
                      const TableView& to) {
  ONEEMB_RETURN_IF_CUDA_ERROR(CreateTable(stream, to));
  const size_t slots = static_cast<size_t>(from.capacity);
  const size_t word = sizeof(uint32_t);
  ONEEMB_RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(
      to.rows, from.rows, slots * static_cast<size_t>(from.row_words) * word,
      cudaMemcpyDeviceToDevice, stream));
  ONEEMB_RETURN_IF_CUDA_ERROR(cudaMemcpyAsync(
      to.clock, from.clock, slots * word, cudaMemcpyDeviceToDevice, stream));
  const unsigned blocks =
      NumBlocks(from.index.num_buckets * kBucketEntries, kBlockThreads);
  CompeteKernel<<<blocks, kBlockThreads, 0, stream>>>(from.index, to.index);
  ONEEMB_RETURN_IF_CUDA_ERROR(cudaGetLastError());
  FinishKernel<<<blocks, kBlockThreads, 0, stream>>>(from.index, to.index);
  return cudaGetLastError();
}

int64_t WriteRowsSpace(const TableRules& rules, int64_t capacity, int64_t n) {
  Workspace workspace;
  Space space{};
  TakeSpace(rules, capacity, n, &workspace, &space);
  return workspace.used();
}

cudaError_t WriteRows(cudaStream_t stream, const TableView& table,
                      const TableRules& rules, const IdsView& ids,
                      const uint32_t* rows, uint32_t* step,
                      void* workspace_base, const bool* apply) {
  Workspace workspace(workspace_base);
  Space space{};
  TakeSpace(rules, table.capacity, ids.size, &workspace, &space);
  PlaceArgs& place = space.place;
  place.mode = PlaceMode::kWriteRows;
  place.table = table;
  place.keys = rules.keys;
  place.embedding_dim = rules.embedding_dim;
  place.step = step;
  place.apply = apply;
  UpdateBatch batch{};
  batch.ids = ids;
  ONEEMB_RETURN_IF_CUDA_ERROR(
      MakeFlatBatch(stream, {batch}, &workspace, &place.batch));
  ONEEMB_RETURN_IF_CUDA_ERROR(
      Place(stream, place, {workspace_base, space.zero_bytes}));
  if (ids.size == 0) return cudaSuccess;
  const SlotPosition* entries = nullptr;
  ONEEMB_RETURN_IF_CUDA_ERROR(
      Sort(stream, place.sort, reinterpret_cast<const uint32_t*>(place.codes),
           &place.state->active, &entries));
  const WriteArgs args{table,
                       entries,
                       ids.size,
                       place.sort.sentinel,
                       rows,
                       step,
                       &place.state->active};
  WriteRowsKernel<<<NumBlocks(ids.size, kBlockWarps), kBlockThreads, 0,
                    stream>>>(args);
  return cudaGetLastError();
}

}  // namespace oneemb::gpu
