#include "core/counters.h"
#include "cuda/index.cuh"
#include "cuda/tier.h"
#include "cuda/warp.cuh"

namespace oneemb::gpu {
namespace {

constexpr int kCollectItems = 8;  // slots a thread
constexpr int64_t kCollectTile = kCollectItems * kBlockThreads;

// The number of this thread in its launch.
__device__ int64_t ThreadNumber() {
  return int64_t{blockIdx.x} * kBlockThreads + threadIdx.x;
}

__device__ uint32_t AgeOf(const TableView& table, int64_t slot, uint32_t now) {
  const uint32_t age = now - table.clock[slot];
  return age < kOldestAge ? age : kOldestAge;
}

__device__ bool MayEvict(const TableView& table, int64_t slot, Victims which) {
  return which == Victims::kAny || table.residency[slot].state != kSlotDirty;
}

__device__ bool LetsThrough(const TableView& table, const SlotFilter& filter,
                            int64_t slot) {
  if (filter.kind == SlotFilter::kDirty) {
    return table.residency[slot].state == kSlotDirty;
  }
  const uint32_t age = AgeOf(table, slot, filter.now);
  const bool aged =
      filter.kind == SlotFilter::kOlder ? age > filter.age : age == filter.age;
  return aged && MayEvict(table, slot, filter.which);
}

// Slots of one age come together: a warp counts each age once.
__global__ __launch_bounds__(kBlockThreads) void CountAgesKernel(
    TableView table, int64_t used, uint32_t now, Victims which,
    uint32_t* bins) {
  const int64_t slot = ThreadNumber();
  const bool counts = slot < used && MayEvict(table, slot, which);
  const uint32_t age = counts ? AgeOf(table, slot, now) : 0;
  const uint32_t same = __match_any_sync(kAllLanes, age);
  if (!counts || (same & LowerLanes()) != 0) return;
  atomicAdd(bins + age, static_cast<uint32_t>(__popc(same)));
}

struct CollectState {
  uint32_t next_tile;
};

struct CollectArgs {
  TableView table;
  int64_t first;
  int64_t end;
  SlotFilter filter;
  int64_t most;
  CollectState* state;
  uint64_t* tiles;
  SlotDescription* slots;
  uint32_t* count;
};

__device__ SlotDescription Describe(const TableView& table, int32_t slot) {
  const SlotResidency residency = table.residency[slot];
  const Key key = EntryKey(table.index, residency.entry);
  return {key.id, key.table, static_cast<uint16_t>(residency.state), slot};
}

__global__ __launch_bounds__(kBlockThreads) void CollectKernel(
    const __grid_constant__ CollectArgs a) {
  __shared__ uint32_t warp_sums[kBlockWarps];
  __shared__ uint32_t shared_tile;
  __shared__ uint32_t shared_before;
  // Tiles are taken in order, so that those before this one are under way.
  if (threadIdx.x == 0) shared_tile = atomicAdd(&a.state->next_tile, 1U);
  __syncthreads();
  const uint32_t tile = shared_tile;
  const int64_t begin =
      a.first + tile * kCollectTile + threadIdx.x * kCollectItems;
  uint32_t through = 0;
#pragma unroll
  for (int k = 0; k < kCollectItems; ++k) {
    const int64_t slot = begin + k;
    if (slot < a.end && LetsThrough(a.table, a.filter, slot)) {
      through |= 1U << k;
    }
  }
  uint32_t in_block = 0;
  const uint32_t before = BlockExclusiveSum(
      static_cast<uint32_t>(__popc(through)), warp_sums, &in_block);
  if (threadIdx.x < kWarp) {
    const uint32_t before_tile = LookBack(a.tiles, tile, in_block);
    if (threadIdx.x == 0) {
      shared_before = before_tile;
      if (tile + 1 == gridDim.x) *a.count = before_tile + in_block;
    }
  }
  __syncthreads();
  int64_t at = int64_t{shared_before} + before;
  for (; through != 0 && at < a.most; through &= through - 1) {
    a.slots[at++] =
        Describe(a.table, static_cast<int32_t>(begin) + LowestBit(through));
  }
}

// By a warp.
__device__ void CopyRow(const uint32_t* from, int64_t words, uint32_t* to) {
  if (words % 4 == 0) {
    for (int64_t w = 4 * Lane(); w < words; w += 4 * kWarp) {
      *reinterpret_cast<uint4*>(to + w) =
          *reinterpret_cast<const uint4*>(from + w);
    }
    return;
  }
  for (int64_t w = Lane(); w < words; w += kWarp) to[w] = from[w];
}

// A warp a row.
__global__ __launch_bounds__(kBlockThreads) void CopyRowsOutKernel(
    TableView table, const int32_t* slots, int64_t count, uint32_t* rows) {
  const int64_t i = ThreadNumber() / kWarp;
  if (i >= count) return;
  CopyRow(table.Row(slots[i]), table.row_words, rows + i * table.row_words);
}

__global__ __launch_bounds__(kBlockThreads) void CopyRowsInKernel(
    TableView table, const SlotAdmission* rows, int64_t count) {
  const int64_t i = ThreadNumber() / kWarp;
  if (i >= count || rows[i].row == nullptr) return;
  CopyRow(rows[i].row, table.row_words, table.Row(rows[i].slot));
}

// EvictSlot of cpu/tier.h. Others evict beside it: of what they share, counts
// are taken down by atomics, and an entry's bytes are its own.
__global__ __launch_bounds__(kBlockThreads) void EvictKernel(
    TableView table, const int32_t* slots, int64_t count) {
  const int64_t i = ThreadNumber();
  uint64_t version = 0;
  if (i < count) {
    SlotResidency* const residency = table.residency + slots[i];
    const int64_t entry = residency->entry;
    const uint64_t hash = HashKey(EntryKey(table.index, entry));
    version = 0 - LayoutTerm(hash, slots[i]);
    const int64_t last = entry / kBucketEntries;
    for (int64_t b = HomeBucket(hash, table.index.num_buckets); b != last;) {
      atomicSub(&table.index.buckets[b].overflow, 1U);
      if (++b == table.index.num_buckets) b = 0;
    }
    Bucket* const bucket = table.index.buckets + last;
    const auto e = static_cast<int>(entry % kBucketEntries);
    bucket->tags[e] = 0;
    bucket->ids[e] = 0;
    bucket->tables[e] = 0;
    bucket->slots[e] = 0;
    *residency = {0, kSlotFree};
  }
  version = WarpSum64(version);
  if (Lane() == 0) AtomicAdd64(table.layout_version, version);
}

__global__ __launch_bounds__(kBlockThreads) void AdmitCompeteKernel(
    TableView table, const SlotAdmission* admissions, int64_t count) {
  const int64_t i = ThreadNumber();
  uint64_t version = 0;
  if (i < count) {
    const SlotAdmission a = admissions[i];
    const uint64_t hash = HashKey({a.id, a.table});
    CompeteForEntry(table.index, hash, a.slot);
    version = LayoutTerm(hash, a.slot);
  }
  version = WarpSum64(version);
  if (Lane() == 0) AtomicAdd64(table.layout_version, version);
}

__global__ __launch_bounds__(kBlockThreads) void AdmitFinishKernel(
    TableView table, const SlotAdmission* admissions, int64_t count,
    uint32_t now) {
  const int64_t i = ThreadNumber();
  if (i >= count) return;
  const SlotAdmission a = admissions[i];
  const Key key{a.id, a.table};
  const int64_t entry = FinishEntry(table.index, key, HashKey(key), a.slot);
  table.residency[a.slot] = {static_cast<uint32_t>(entry),
                             a.row == nullptr ? kSlotReserved : kSlotClean};
  table.clock[a.slot] = now;
}

__global__ __launch_bounds__(kBlockThreads) void MarkCleanKernel(
    SlotResidency* residency, int64_t capacity, const bool* flushed,
    const uint32_t* generation, uint32_t* next) {
  const int64_t slot = ThreadNumber();
  if (slot == 0) *next = *generation + (*flushed ? 1 : 0);
  if (slot >= capacity || !*flushed) return;
  if (residency[slot].state == kSlotDirty) residency[slot].state = kSlotClean;
}

}  // namespace

int64_t FindMissingSpace(const TableRules& rules, int64_t capacity, int64_t n) {
  Workspace workspace;
  PlaceArgs place{};
  TakePlaceZeros(n, capacity, rules.keys.shared_keys, &workspace, &place);
  TakePlaceRest(n, &workspace, &place);
  return workspace.used();
}

cudaError_t FindMissing(cudaStream_t stream, const TableView& table,
                        const TableRules& rules, const IdsView& ids,
                        const uint32_t* now, void* workspace_base,
                        PlaceArgs* place) {
  Workspace workspace(workspace_base);
  TakePlaceZeros(ids.size, table.capacity, rules.keys.shared_keys, &workspace,
                 place);
  ONEEMB_RETURN_IF_CUDA_ERROR(cudaMemsetAsync(
      workspace_base, 0, static_cast<size_t>(workspace.used()), stream));
  TakePlaceRest(ids.size, &workspace, place);
  place->mode = PlaceMode::kStage;
  place->table = table;
  place->keys = rules.keys;
  place->now = now;
  UpdateBatch batch{};
  batch.ids = ids;
  ONEEMB_RETURN_IF_CUDA_ERROR(
      MakeFlatBatch(stream, {batch}, &workspace, &place->batch));
  ONEEMB_RETURN_IF_CUDA_ERROR(PlaceFind(stream, *place));
  return PlaceNumber(stream, *place);
}

cudaError_t CountAges(cudaStream_t stream, const TableView& table, int64_t used,
                      uint32_t now, Victims which, uint32_t* bins) {
  ONEEMB_RETURN_IF_CUDA_ERROR(
      cudaMemsetAsync(bins, 0, (kOldestAge + 1) * sizeof(uint32_t), stream));
  CountAgesKernel<<<NumBlocks(used, kBlockThreads), kBlockThreads, 0, stream>>>(
      table, used, now, which, bins);
  return cudaGetLastError();
}

int64_t CollectSpace(int64_t capacity) {
  Workspace workspace;
  workspace.Take<CollectState>(1);
  workspace.Take<uint64_t>(CeilDiv(capacity, kCollectTile));
  return workspace.used();
}

cudaError_t CollectSlots(cudaStream_t stream, const TableView& table,
                         int64_t first, int64_t end, const SlotFilter& filter,
                         int64_t most, void* space, SlotDescription* slots,
                         uint32_t* count) {
  Workspace workspace(space);
  CollectArgs args{};
  args.table = table;
  args.first = first;
  args.end = end;
  args.filter = filter;
  args.most = most;
  args.state = workspace.Take<CollectState>(1);
  args.tiles = workspace.Take<uint64_t>(CeilDiv(end - first, kCollectTile));
  args.slots = slots;
  args.count = count;
  ONEEMB_RETURN_IF_CUDA_ERROR(
      cudaMemsetAsync(space, 0, static_cast<size_t>(workspace.used()), stream));
  CollectKernel<<<NumBlocks(end - first, kCollectTile), kBlockThreads, 0,
                  stream>>>(args);
  return cudaGetLastError();
}

cudaError_t CopyRowsOut(cudaStream_t stream, const TableView& table,
                        const int32_t* slots, int64_t count, uint32_t* rows) {
  CopyRowsOutKernel<<<NumBlocks(count, kBlockWarps), kBlockThreads, 0,
                      stream>>>(table, slots, count, rows);
  return cudaGetLastError();
}

cudaError_t CopyRowsIn(cudaStream_t stream, const TableView& table,
                       const SlotAdmission* rows, int64_t count) {
  CopyRowsInKernel<<<NumBlocks(count, kBlockWarps), kBlockThreads, 0, stream>>>(
      table, rows, count);
  return cudaGetLastError();
}

cudaError_t EvictSlots(cudaStream_t stream, const TableView& table,
                       const int32_t* slots, int64_t count) {
  EvictKernel<<<NumBlocks(count, kBlockThreads), kBlockThreads, 0, stream>>>(
      table, slots, count);
  return cudaGetLastError();
}

cudaError_t AdmitKeys(cudaStream_t stream, const TableView& table,
                      const SlotAdmission* admissions, int64_t count,
                      uint32_t now) {
  const unsigned blocks = NumBlocks(count, kBlockThreads);
  AdmitCompeteKernel<<<blocks, kBlockThreads, 0, stream>>>(table, admissions,
                                                           count);
  ONEEMB_RETURN_IF_CUDA_ERROR(cudaGetLastError());
  AdmitFinishKernel<<<blocks, kBlockThreads, 0, stream>>>(table, admissions,
                                                          count, now);
  return cudaGetLastError();
}

cudaError_t MarkClean(cudaStream_t stream, SlotResidency* residency,
                      int64_t capacity, const bool* flushed,
                      const uint32_t* generation, uint32_t* next) {
  MarkCleanKernel<<<NumBlocks(capacity, kBlockThreads), kBlockThreads, 0,
                    stream>>>(residency, capacity, flushed, generation, next);
  return cudaGetLastError();
}

}  // namespace oneemb::gpu
