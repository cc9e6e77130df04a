#include "core/counters.h"
#include "core/optimizer_math.h"
#include "cuda/chain.cuh"
#include "cuda/claim.cuh"
#include "cuda/fingerprint.cuh"
#include "cuda/insert.cuh"
#include "cuda/place.h"
#include "cuda/sort_keys.cuh"
#include "cuda/tile_sums.cuh"
#include "cuda/warp.cuh"

namespace oneemb::gpu {
namespace {

constexpr int kNumberItems = kNumberTile / kBlockThreads;
constexpr int kAssignItems = 2;  // positions a thread
constexpr int64_t kAssignTile = kAssignItems * kBlockThreads;
// Most calls have nothing to assign: few blocks that find that out.
constexpr unsigned kMaxAssignBlocks = 1024;

// By `threads` threads, of which this one is number `thread`.
__device__ void AddLookupCounts(const PlaceArgs& a, unsigned thread,
                                unsigned threads) {
  for (int32_t b = 0; b < a.batch.count; ++b) {
    const UpdateBatch& batch = a.batch.list()[b].batch;
    for (int64_t m = thread; m < batch.num_microbatches; m += threads) {
      const uint32_t* const counts = batch.counts + m * kNumLookupCounts;
      AtomicAdd64(&a.table.counters[kHits], counts[kLookupHits]);
      AtomicAdd64(&a.table.counters[kMisses], counts[kLookupMisses]);
      AtomicAdd64(&a.table.counters[kBadTables], counts[kLookupBadTables]);
    }
  }
}

// Whether keys without a row get an entry of the index and a slot.
__device__ bool Inserts(const PlaceArgs& a) {
  return a.mode != PlaceMode::kNumber && a.mode != PlaceMode::kStage &&
         !a.table.cached();
}

// Whether the call goes through: after Place, contexts are known to be whole.
__device__ bool GoesThrough(const PlaceArgs& a) {
  const PlaceState& state = *a.state;
  if (!HasContexts(a.mode)) return state.active != 0;
  return state.active != 0 && state.checksum == 0 && state.outside == 0;
}

// The first position of a new key in a tile, and the cell that it has claimed.
struct FirstPosition {
  uint32_t in_tile;
  uint32_t cell;
};

// Takes the key that `position` is the first of, as number `number`. Returns
// its hash.
__device__ uint64_t TakeNewKey(const PlaceArgs& a, int64_t position,
                               uint32_t cell, uint32_t number) {
  const PlacedBatch& placed = a.batch.Find(position);
  const int64_t i = position - placed.begin;
  const uint64_t id = placed.batch.ids.Id(i);
  int32_t table = placed.batch.ids.Table(i);
  const Key key = a.keys.MakeKey(id, table);
  if (a.cell_tables != nullptr) {
    table = static_cast<int32_t>(~a.cell_tables[cell]);
  }
  const uint64_t hash = HashKey(key);
  const int32_t slot = a.table.cached() && a.mode != PlaceMode::kStage
                           ? FindSlot(a.table.index, key, hash)
                           : kSlotMissing;
  a.cells[cell] = number;
  a.new_keys[number] = {id, key.table, static_cast<uint16_t>(table), slot};
  return hash;
}

// Numbers the new keys of a tile from `before` on; for a whole block.
__device__ void TakeNewKeys(const PlaceArgs& a, int64_t tile_begin,
                            const FirstPosition* firsts, uint32_t count,
                            uint32_t before) {
  const bool inserts = Inserts(a);
  uint64_t version = 0;
  for (uint32_t k = threadIdx.x; k < count; k += kBlockThreads) {
    const uint32_t number = before + k;
    const uint64_t hash =
        TakeNewKey(a, tile_begin + firsts[k].in_tile, firsts[k].cell, number);
    if (inserts) version += InsertNewKey(a, hash, number);
  }
  if (inserts) AddVersion(a, version);
}

__global__ __launch_bounds__(kBlockThreads) void NumberKernel(
    const __grid_constant__ PlaceArgs a) {
  __shared__ uint32_t warp_sums[kBlockWarps];
  __shared__ uint32_t shared_tile;
  __shared__ uint32_t shared_before;
  __shared__ FirstPosition firsts[kNumberTile];
  WaitForPrevious();
  if (!GoesThrough(a) || a.state->any_missing == 0) return;
  // Tiles are taken in order, so that those before this one are under way.
  if (threadIdx.x == 0) shared_tile = atomicAdd(&a.state->next_tile, 1U);
  __syncthreads();
  const uint32_t tile = shared_tile;
  const int64_t begin = tile * kNumberTile;
  uint32_t cells[kNumberItems];
  uint32_t is_first = 0;
#pragma unroll
  for (int k = 0; k < kNumberItems; ++k) {
    const int64_t i = begin + threadIdx.x * kNumberItems + k;
    const int32_t code = i < a.batch.size ? a.codes[i] : 0;
    cells[k] = static_cast<uint32_t>(kFirstClaim - code);
    const bool first =
        code <= kFirstClaim && a.cells[cells[k]] == ~static_cast<uint32_t>(i);
    is_first |= first ? 1U << k : 0;
  }
  uint32_t in_tile = 0;
  uint32_t at = BlockExclusiveSum(__popc(is_first), warp_sums, &in_tile);
#pragma unroll
  for (int k = 0; k < kNumberItems; ++k) {
    if ((is_first >> k & 1) == 0) continue;
    firsts[at++] = {threadIdx.x * kNumberItems + k, cells[k]};
  }
  if (threadIdx.x < kWarp) {
    const uint32_t before = SumBefore(a.firsts, tile, in_tile);
    if (threadIdx.x == 0) {
      shared_before = before;
      if (tile + 1 == gridDim.x) a.state->num_new = before + in_tile;
    }
  }
  __syncthreads();
  TakeNewKeys(a, begin, firsts, in_tile, shared_before);
  if (a.mode != PlaceMode::kStage) return;
  __syncthreads();
  AddFingerprint(a, shared_before, in_tile);
}

// The slot of a position that has claimed a cell.
__device__ int32_t ClaimedSlot(const PlaceArgs& a, int32_t code) {
  const int64_t number = a.cells[kFirstClaim - code];
  if (a.mode == PlaceMode::kNumber) return static_cast<int32_t>(number);
  if (a.table.cached()) return a.new_keys[number].slot;
  const int64_t slot = static_cast<int64_t>(a.state->rows_before) + number;
  return slot < a.table.capacity ? static_cast<int32_t>(slot) : kSlotMissing;
}

// Sort keys of the positions of one tile that have claimed cells, and their
// counts. Returns how many of this thread's get no row.
__device__ int AssignTile(const PlaceArgs& a, int64_t tile,
                          DigitCounts* block_counts) {
  const int64_t begin = tile * kAssignTile + threadIdx.x;
  int refused = 0;
#pragma unroll
  for (int k = 0; k < kAssignItems; ++k) {
    const int64_t i = begin + k * kBlockThreads;
    const int32_t code = i < a.batch.size ? a.codes[i] : 0;
    if (code > kFirstClaim) continue;
    const int32_t slot = ClaimedSlot(a, code);
    refused += slot < 0 ? 1 : 0;
    const uint32_t key = SortKey(a.sort, slot);
    a.codes[i] = static_cast<int32_t>(key);
    CountKey(a.sort, key, block_counts);
  }
  return refused;
}

// For a whole block.
__device__ void AssignClaimed(const PlaceArgs& a, DigitCounts* block_counts) {
  const int64_t tiles = CeilDiv(a.batch.size, kAssignTile);
  int refused = 0;
  BeginCounts(block_counts);
  __syncthreads();
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    refused += AssignTile(a, tile, block_counts);
  }
  const uint64_t refused_in_warp = WarpSum64(static_cast<uint64_t>(refused));
  if (refused_in_warp != 0 && Lane() == 0) {
    AtomicAdd64(&a.table.counters[kOverflows], refused_in_warp);
  }
  __syncthreads();
  AddCounts(a.sort, *block_counts);
}

// What one thread does for all where nothing goes through.
__device__ void Refuse(const PlaceArgs& a) {
  if (a.state->active == 0) return;
  a.state->active = 0;  // for the launches that follow
  if (a.mode == PlaceMode::kUpdate) ++a.table.counters[kDamagedContexts];
}

// What one block does for all, when the number of rows is known.
__device__ void CloseBooks(const PlaceArgs& a) {
  if (a.mode == PlaceMode::kNumber) return;
  const bool updates = a.mode == PlaceMode::kUpdate;
  // By others than the thread that does the rest.
  if (updates && threadIdx.x >= kWarp) {
    AddLookupCounts(a, threadIdx.x - kWarp, blockDim.x - kWarp);
  }
  if (threadIdx.x != 0) return;
  // All loads before the first store: each would wait for the one before it.
  uint64_t* const counters = a.table.counters;
  const PlaceState& state = *a.state;
  const uint64_t inserted = static_cast<uint64_t>(NumInserted(a));
  const uint64_t rows = state.rows_before + inserted;
  const uint64_t inserts = counters[kInserts] + inserted;
  const uint64_t unstaged = counters[kUnstaged] + state.unstaged;
  const uint32_t step = state.step;
  const uint32_t generation = updates ? *a.generation + 1 : 0;
  const float rate = updates ? *a.learning_rate : 0.0F;
  counters[kRows] = rows;
  counters[kInserts] = inserts;
  counters[kUnstaged] = unstaged;
  if (!updates) return;
  *a.step = step + 1;
  *a.generation = generation;
  DispatchOptimizer(a.optimizer.kind, [&](auto optimizer) {
    using Scalars = typename decltype(optimizer)::Scalars;
    static_assert(sizeof(Scalars) <= sizeof(PlaceState::scalars));
    *reinterpret_cast<Scalars*>(a.state->scalars) =
        decltype(optimizer)::Prepare(a.optimizer, rate, step);
  });
}

// The blocks of Assign that a multiprocessor has room for.
constexpr int AssignBlocks(Draws draws) {
  return draws == Draws::kUniform ? 4 : 3;
}

template <Draws kDraws>
__global__
__launch_bounds__(kBlockThreads, AssignBlocks(kDraws)) void AssignKernel(
    const __grid_constant__ PlaceArgs a) {
  __shared__ DigitCounts block_counts;
  const bool last = blockIdx.x + 1 == gridDim.x;
  WaitForPrevious();
  if (!GoesThrough(a)) {
    if (last && threadIdx.x == 0) Refuse(a);
    return;
  }
  if (a.state->any_missing != 0) {
    AssignClaimed(a, &block_counts);
    if (!a.table.cached()) FinishEntries(a);
    if (a.mode == PlaceMode::kUpdate) WriteNewRows<kDraws>(a);
  }
  if (last) CloseBooks(a);
}

}  // namespace

cudaError_t PlaceNumber(cudaStream_t stream, const PlaceArgs& args) {
  if (args.batch.size == 0) return cudaSuccess;
  return LaunchNext(stream, NumberKernel,
                    NumBlocks(args.batch.size, kNumberTile), args);
}

cudaError_t PlaceSettle(cudaStream_t stream, const PlaceArgs& args) {
  ONEEMB_RETURN_IF_CUDA_ERROR(PlaceNumber(stream, args));
  const unsigned tiles = NumBlocks(args.batch.size, kAssignTile);
  const auto assign = args.initializers.draws == Draws::kUniform
                          ? AssignKernel<Draws::kUniform>
                          : AssignKernel<Draws::kAny>;
  return LaunchNext(stream, assign,
                    tiles < kMaxAssignBlocks ? tiles : kMaxAssignBlocks, args);
}

}  // namespace oneemb::gpu
