#include "cuda/collect.h"
#include "cuda/index.cuh"
#include "cuda/key_copy.cuh"
#include "cuda/tile_sums.cuh"
#include "cuda/warp.cuh"

namespace oneemb::gpu {
namespace {

constexpr int kCollectItems = 8;  // slots a thread
constexpr int64_t kCollectTile = kCollectItems * kBlockThreads;

__device__ uint32_t AgeOf(const TableView& table, int64_t slot, uint32_t now) {
  const uint32_t age = now - table.clock[slot];
  return age < kOldestAge ? age : kOldestAge;
}

__device__ bool MayEvict(const TableView& table, int64_t slot, Victims which) {
  return which == Victims::kAny || table.residency[slot].state != kSlotDirty;
}

// Slots of one age come together: a warp counts each age once.
__global__ __launch_bounds__(kBlockThreads) void CountAgesKernel(
    TableView table, int64_t used, uint32_t now, Victims which,
    uint32_t* bins) {
  const int64_t slot = int64_t{blockIdx.x} * kBlockThreads + threadIdx.x;
  const bool counts = slot < used && MayEvict(table, slot, which);
  const uint32_t age = counts ? AgeOf(table, slot, now) : 0;
  const uint32_t same = __match_any_sync(kAllLanes, age);
  if (!counts || (same & LowerLanes()) != 0) return;
  atomicAdd(bins + age, static_cast<uint32_t>(__popc(same)));
}

// Two counts: of a thread, or of all before it.
struct Pair {
  uint32_t first;
  uint32_t second;
};

struct PairScanShared {
  uint32_t warp_sums[kBlockWarps];
  uint32_t tile;
  uint32_t before[2];
};

PairScan TakePairScan(int64_t tiles, Workspace* workspace) {
  PairScan scan{};
  scan.next_tile = workspace->Take<uint32_t>(1);
  for (TileSums& sums : scan.sums) sums = TakeTileSums(tiles, workspace);
  return scan;
}

// Tiles are taken in order, so that those before this one are under way.
__device__ uint32_t TakeTile(const PairScan& scan, PairScanShared* shared) {
  if (threadIdx.x == 0) shared->tile = atomicAdd(scan.next_tile, 1U);
  __syncthreads();
  return shared->tile;
}

// The sums over the threads before this one, of tiles before this one too, for
// a whole block that has fewer than 65,536 items; *all: with this tile.
__device__ Pair PairsBefore(const PairScan& scan, uint32_t tile, Pair mine,
                            PairScanShared* shared, Pair* all) {
  constexpr uint32_t kHalf = 0xffff;
  uint32_t total = 0;
  const uint32_t in_block = BlockExclusiveSum(mine.first | mine.second << 16,
                                              shared->warp_sums, &total);
  const unsigned warp = threadIdx.x / kWarp;
  if (warp < 2) {
    const uint32_t before = SumBefore(scan.sums[warp], tile,
                                      warp == 0 ? total & kHalf : total >> 16);
    if (Lane() == 0) shared->before[warp] = before;
  }
  __syncthreads();
  const Pair before{shared->before[0], shared->before[1]};
  *all = {before.first + (total & kHalf), before.second + (total >> 16)};
  return {before.first + (in_block & kHalf), before.second + (in_block >> 16)};
}

// The place, from the oldest on, where the sum of a block's `value`s comes to
// `count`; whether this thread has it. *before: the sum that it begins with.
__device__ bool Crosses(uint32_t value, uint32_t count, uint32_t* warp_sums,
                        uint32_t* before) {
  uint32_t total = 0;
  *before += BlockExclusiveSum(value, warp_sums, &total);
  return *before < count && value >= count - *before;
}

// By one block, whose threads first have a chunk of the ages each.
__global__ __launch_bounds__(kBlockThreads) void PlanVictimsKernel(
    const uint32_t* bins, uint32_t count, VictimPlan* plan) {
  constexpr uint32_t kChunk = (kOldestAge + 1) / kBlockThreads;
  static_assert(kChunk == kBlockThreads, "a chunk has an age for each thread");
  __shared__ uint32_t warp_sums[kBlockWarps];
  __shared__ uint32_t oldest;
  __shared__ uint32_t older;
  // All go if there are not as many: those older than 0.
  if (threadIdx.x == 0) {
    oldest = 0;
    older = 0;
    *plan = {0, 0};
  }
  __syncthreads();
  const uint32_t chunk = kOldestAge - threadIdx.x * kChunk;
  uint32_t in_chunk = 0;
  const auto* const fours =
      reinterpret_cast<const uint4*>(bins + (chunk - (kChunk - 1)));
#pragma unroll 16
  for (uint32_t k = 0; k < kChunk / 4; ++k) {
    const uint4 four = fours[k];
    in_chunk += four.x + four.y + four.z + four.w;
  }
  if (chunk == kChunk - 1) in_chunk -= bins[0];  // those in use stay
  uint32_t before = 0;
  if (Crosses(in_chunk, count, warp_sums, &before)) {
    oldest = chunk;
    older = before;
  }
  __syncthreads();
  if (oldest == 0) return;
  const uint32_t age = oldest - threadIdx.x;
  before = older;
  if (Crosses(age == 0 ? 0 : bins[age], count, warp_sums, &before)) {
    *plan = {age, count - before};
  }
}

struct CollectArgs {
  TableView table;
  int64_t first;
  int64_t end;
  int64_t most;
  // Of victims, else null.
  const VictimPlan* plan;
  uint32_t now;
  Victims which;
  PairScan scan;
  CollectSpace space;
};

__device__ SlotDescription Describe(const TableView& table, int32_t slot) {
  const SlotResidency residency = table.residency[slot];
  const Key key = EntryKey(table.index, residency.entry);
  return {key.id, key.table, static_cast<uint16_t>(residency.state), slot};
}

// Slots that are wanted, and those that are if the ones before leave room.
enum class Wanted { kNo, kYes, kMaybe };

__device__ Wanted IsWanted(const CollectArgs& a, int64_t slot) {
  if (slot >= a.end) return Wanted::kNo;
  if (a.plan == nullptr) {
    const bool dirty = a.table.residency[slot].state == kSlotDirty;
    return dirty ? Wanted::kYes : Wanted::kNo;
  }
  const uint32_t age = AgeOf(a.table, slot, a.now);
  if (age == 0 || age < a.plan->age || !MayEvict(a.table, slot, a.which)) {
    return Wanted::kNo;
  }
  return age == a.plan->age ? Wanted::kMaybe : Wanted::kYes;
}

__global__ __launch_bounds__(kBlockThreads) void CollectKernel(
    const __grid_constant__ CollectArgs a) {
  __shared__ PairScanShared shared;
  const uint32_t tile = TakeTile(a.scan, &shared);
  const int64_t begin =
      a.first + tile * kCollectTile + threadIdx.x * kCollectItems;
  const uint32_t rest = a.plan == nullptr ? 0 : a.plan->rest;
  Wanted wanted[kCollectItems];
  Pair mine{0, 0};
#pragma unroll
  for (int k = 0; k < kCollectItems; ++k) {
    wanted[k] = IsWanted(a, begin + k);
    mine.first += wanted[k] == Wanted::kYes ? 1 : 0;
    mine.second += wanted[k] == Wanted::kMaybe ? 1 : 0;
  }
  Pair all{};
  Pair before = PairsBefore(a.scan, tile, mine, &shared, &all);
#pragma unroll
  for (int k = 0; k < kCollectItems; ++k) {
    const bool goes = wanted[k] == Wanted::kYes ||
                      (wanted[k] == Wanted::kMaybe && before.second < rest);
    const int64_t at = int64_t{before.first} + min(before.second, rest);
    if (goes && at < a.most) {
      a.space.slots[at] = Describe(a.table, static_cast<int32_t>(begin) + k);
    }
    before.first += wanted[k] == Wanted::kYes ? 1 : 0;
    before.second += wanted[k] == Wanted::kMaybe ? 1 : 0;
  }
  if (tile + 1 == gridDim.x && threadIdx.x == 0) {
    a.space.counts->all = all.first + min(all.second, rest);
  }
}

// Ranks of dirty slots among those collected, and their keys to the host.
__global__ __launch_bounds__(kBlockThreads) void RankDirtyKernel(
    const CollectSpace space, const PairScan scan, volatile SlotCounts* counts,
    Key* keys) {
  __shared__ PairScanShared shared;
  const uint32_t tile = TakeTile(scan, &shared);
  const int64_t i = int64_t{tile} * kBlockThreads + threadIdx.x;
  const uint32_t num_slots = space.counts->all;
  SlotDescription slot{};
  if (i < num_slots) slot = space.slots[i];
  const bool dirty = slot.state == kSlotDirty;
  const bool reserved = slot.state == kSlotReserved;
  Pair all{};
  const Pair before = PairsBefore(
      scan, tile, {dirty ? 1U : 0U, reserved ? 1U : 0U}, &shared, &all);
  if (i < num_slots) {
    space.dirty_ranks[i] = dirty ? static_cast<int32_t>(before.first) : -1;
  }
  if (dirty) StoreKey(keys + before.first, {slot.id, slot.table});
  if (tile + 1 == gridDim.x && threadIdx.x == 0) {
    counts->all = num_slots;
    counts->dirty = all.first;
    counts->reserved = all.second;
  }
}

cudaError_t Collect(cudaStream_t stream, const CollectArgs& args) {
  CollectKernel<<<NumBlocks(args.end - args.first, kCollectTile), kBlockThreads,
                  0, stream>>>(args);
  return cudaGetLastError();
}

}  // namespace

CollectSpace TakeCollectSpace(int64_t capacity, int64_t most,
                              Workspace* workspace) {
  CollectSpace space{};
  const int64_t before = workspace->used();
  space.bins = workspace->Take<uint32_t>(kOldestAge + 1);
  space.plan = workspace->Take<VictimPlan>(1);
  space.collect = TakePairScan(CeilDiv(capacity, kCollectTile), workspace);
  space.rank = TakePairScan(CeilDiv(most, kBlockThreads), workspace);
  space.zero_bytes = workspace->used() - before;
  space.counts = workspace->Take<SlotCounts>(1);
  space.slots = workspace->Take<SlotDescription>(most);
  space.dirty_ranks = workspace->Take<int32_t>(most);
  return space;
}

cudaError_t ClearCollectSpace(cudaStream_t stream, const CollectSpace& space) {
  return cudaMemsetAsync(space.bins, 0, static_cast<size_t>(space.zero_bytes),
                         stream);
}

cudaError_t CollectVictims(cudaStream_t stream, const TableView& table,
                           int64_t used, uint32_t now, int64_t count,
                           Victims which, const CollectSpace& space,
                           SlotCounts* counts, Key* dirty) {
  CountAgesKernel<<<NumBlocks(used, kBlockThreads), kBlockThreads, 0, stream>>>(
      table, used, now, which, space.bins);
  ONEEMB_RETURN_IF_CUDA_ERROR(cudaGetLastError());
  PlanVictimsKernel<<<1, kBlockThreads, 0, stream>>>(
      space.bins, static_cast<uint32_t>(count), space.plan);
  ONEEMB_RETURN_IF_CUDA_ERROR(cudaGetLastError());
  ONEEMB_RETURN_IF_CUDA_ERROR(Collect(
      stream,
      {table, 0, used, count, space.plan, now, which, space.collect, space}));
  RankDirtyKernel<<<NumBlocks(count, kBlockThreads), kBlockThreads, 0,
                    stream>>>(space, space.rank, counts, dirty);
  return cudaGetLastError();
}

cudaError_t CollectNothing(cudaStream_t stream, const CollectSpace& space) {
  return cudaMemsetAsync(space.counts, 0, sizeof(SlotCounts), stream);
}

cudaError_t CollectDirty(cudaStream_t stream, const TableView& table,
                         int64_t first, int64_t end, int64_t most,
                         const CollectSpace& space) {
  return Collect(stream, {table, first, end, most, nullptr, 0, Victims::kAny,
                          space.collect, space});
}

}  // namespace oneemb::gpu
