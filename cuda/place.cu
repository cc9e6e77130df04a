#include "core/counters.h"
#include "core/optimizer_math.h"
#include "cuda/chain.cuh"
#include "cuda/checksum.cuh"
#include "cuda/claim.cuh"
#include "cuda/fingerprint.cuh"
#include "cuda/index.cuh"
#include "cuda/insert.cuh"
#include "cuda/place.h"
#include "cuda/warp.cuh"

namespace oneemb::gpu {
namespace {

constexpr int kNumberItems = 4;  // positions a thread
constexpr int kAssignItems = 2;
constexpr int64_t kAssignTile = kAssignItems * kBlockThreads;
// Most calls have nothing to assign: few blocks that find that out.
constexpr unsigned kMaxAssignBlocks = 1024;
constexpr int64_t kNumberTile = kNumberItems * kBlockThreads;
static_assert(kBlockThreads == SortPlan::kMaxDigits,
              "a thread looks after one digit");

// How often a block has seen each digit of the passes of the sort.
struct DigitCounts {
  uint32_t counts[SortPlan::kMaxPasses][SortPlan::kMaxDigits];
};

// Whether all lookups saw the layout that the table has; for a whole block.
__device__ bool SawLayout(const PlaceArgs& a) {
  if (a.mode != PlaceMode::kUpdate) return false;
  const uint64_t version = *a.table.layout_version;
  int same = 1;
  for (int32_t b = 0; b < a.batch.count; ++b) {
    const UpdateBatch& batch = a.batch.list()[b].batch;
    for (int64_t m = threadIdx.x; m < batch.num_microbatches; m += blockDim.x) {
      same &= batch.layout_versions[m] == version ? 1 : 0;
    }
  }
  return __syncthreads_and(same) != 0;
}

__device__ void AddLookupCounts(const PlaceArgs& a) {
  for (int32_t b = 0; b < a.batch.count; ++b) {
    const UpdateBatch& batch = a.batch.list()[b].batch;
    for (int64_t m = threadIdx.x; m < batch.num_microbatches; m += blockDim.x) {
      const uint32_t* const counts = batch.counts + m * kNumLookupCounts;
      AtomicAdd64(&a.table.counters[kHits], counts[kLookupHits]);
      AtomicAdd64(&a.table.counters[kMisses], counts[kLookupMisses]);
      AtomicAdd64(&a.table.counters[kBadTables], counts[kLookupBadTables]);
    }
  }
}

// Whether positions come with what a lookup found.
__device__ bool HasContexts(PlaceMode mode) {
  return mode == PlaceMode::kUpdate || mode == PlaceMode::kNumber;
}

// Whether this call may change anything, as far as its scalars tell.
__device__ bool IsActive(const PlaceArgs& a) {
  if (a.mode != PlaceMode::kUpdate) return a.apply == nullptr || *a.apply;
  const float rate = *a.learning_rate;
  return *a.apply && rate >= 0.0F && rate < FloatFromBits(kFloatInfinity);
}

// What one block does for all, before anything has changed.
__device__ void OpenBooks(const PlaceArgs& a, bool active) {
  if (threadIdx.x != 0) return;
  a.state->active = active ? 1 : 0;
  if (a.mode == PlaceMode::kNumber || a.mode == PlaceMode::kStage) return;
  a.state->rows_before = a.table.counters[kRows];
  a.state->step = a.step == nullptr ? 0 : *a.step;
  // A cached table counts it once it is known to be current.
  if (a.table.cached()) return;
  if (!active && *a.apply) ++a.table.counters[kBadLearningRates];
}

// This thread's part of the checksums that the lookups wrote; for one block.
__device__ uint32_t WrittenChecksum(const PlaceArgs& a) {
  uint32_t sum = 0;
  for (int32_t b = 0; b < a.batch.count; ++b) {
    const UpdateBatch& batch = a.batch.list()[b].batch;
    for (int64_t m = threadIdx.x; m < batch.num_microbatches; m += blockDim.x) {
      sum += batch.counts[m * kNumLookupCounts + kLookupChecksum];
    }
  }
  return sum;
}

// Whether the call goes through: after Place, contexts are known to be whole.
__device__ bool GoesThrough(const PlaceArgs& a) {
  const PlaceState& state = *a.state;
  if (!HasContexts(a.mode)) return state.active != 0;
  return state.active != 0 && state.checksum == 0 && state.outside == 0;
}

// The slot of a position as the lookup reported it. Its part of the checksum is
// added to *checksum.
__device__ int32_t ReportedSlot(const PlaceArgs& a, int64_t position,
                                uint32_t* checksum) {
  if (position >= a.batch.size) return kSlotPadding;
  if (a.mode == PlaceMode::kWriteRows) return kSlotMissing;
  const PlacedBatch& placed = a.batch.Find(position);
  const IdsView& ids = placed.batch.ids;
  const int64_t i = position - placed.begin;
  // The checksum of a batch that is staged tells it apart from others.
  const int32_t slot =
      a.mode == PlaceMode::kStage ? kSlotMissing : placed.batch.slots[i];
  *checksum += ChecksumAt(ids, i, ids.Id(i), ids.Table(i), slot);
  return slot;
}

// What becomes of a key that is in `slot` of a cached table, or in none;
// whether it claims a cell.
__device__ bool ClaimsStaged(const PlaceArgs& a, int32_t slot) {
  if (a.mode == PlaceMode::kStage) return slot < 0;
  if (slot < 0) atomicAdd(&a.state->unstaged, 1U);
  return slot >= 0 && a.table.IsReserved(slot);
}

// Whether a position of a cached table had no slot when it was looked up: its
// activation was NaN, whatever has been staged since.
__device__ bool WasUnstaged(const PlaceArgs& a, const PlacedBatch& placed,
                            int64_t position) {
  return a.mode == PlaceMode::kUpdate && a.table.cached() &&
         placed.batch.slots[position - placed.begin] == kSlotMissing;
}

// The slot of a position that the lookup reported missing, or the code of its
// claim; for a whole warp, of which the lanes with `missing` ask.
__device__ int32_t PlaceMissing(const PlaceArgs& a, bool saw_layout,
                                int64_t position, bool missing,
                                SearchShared* shared) {
  uint64_t id = 0;
  int32_t table = 0;
  int32_t code = kSlotMissing;
  if (missing) {
    const PlacedBatch& placed = a.batch.Find(position);
    id = placed.batch.ids.Id(position - placed.begin);
    table = placed.batch.ids.Table(position - placed.begin);
    const int32_t rejected = a.keys.Reject(id, table);
    missing = rejected == 0;
    if (!missing) code = rejected;
    if (missing && WasUnstaged(a, placed, position)) {
      atomicAdd(&a.state->was_missing, 1U);
      missing = false;
    }
  }
  const Key key = a.keys.MakeKey(id, table);
  const bool cached = a.table.cached();
  if ((!saw_layout || cached) && a.mode != PlaceMode::kNumber) {
    const int32_t slot = ProbeIndex(a.table.index, key, missing, shared);
    code = missing ? slot : code;
    missing = missing && (cached ? ClaimsStaged(a, slot) : slot < 0);
  }
  return missing ? Claim(a, key, table, static_cast<uint32_t>(position)) : code;
}

__device__ __forceinline__ uint32_t SortKey(const PlaceArgs& a, int32_t slot) {
  return slot >= 0 ? static_cast<uint32_t>(slot) : a.sort.sentinel;
}

// For a whole block, before and after it counts.
__device__ void BeginCounts(DigitCounts* block) {
  for (auto& counts : block->counts) counts[threadIdx.x] = 0;
}

__device__ void AddCounts(const PlaceArgs& a, const DigitCounts& block) {
  if (threadIdx.x >= 1U << a.sort.digit_bits) return;
  const int64_t copy = blockIdx.x % SortPlan::kCopies;
  uint32_t* const totals =
      a.sort.totals + copy * a.sort.num_totals() + threadIdx.x;
  for (int pass = 0; pass < a.sort.passes; ++pass) {
    const uint32_t count = block.counts[pass][threadIdx.x];
    if (count != 0) atomicAdd(totals + (pass << a.sort.digit_bits), count);
  }
}

__device__ void CountKey(const PlaceArgs& a, uint32_t key, DigitCounts* block) {
#pragma unroll
  for (int pass = 0; pass < SortPlan::kMaxPasses; ++pass) {
    if (pass == a.sort.passes) break;
    atomicAdd(&block->counts[pass][a.sort.Digit(key, pass)], 1U);
  }
}

// Writes what is known of a position; counts its digits if that is its sort
// key.
__device__ void WriteCode(const PlaceArgs& a, int64_t position, int32_t code,
                          DigitCounts* block_counts) {
  if (code <= kFirstClaim) {
    a.state->any_missing = 1;
    a.codes[position] = code;
    return;
  }
  const uint32_t key = SortKey(a, code);
  a.codes[position] = static_cast<int32_t>(key);
  CountKey(a, key, block_counts);
}

// Places the positions that the lookup reported missing: those of this thread
// whose bit of `asks` is set; for a whole block. Not inlined: a step that
// trains only rows that are there does without, and its registers are better
// spent on more warps.
template <int kItems>
__device__ __noinline__ void PlaceMissingOnes(const PlaceArgs& a,
                                              bool saw_layout, int64_t begin,
                                              uint32_t asks,
                                              SearchShared* shared,
                                              DigitCounts* block_counts) {
  int bad = 0;
#pragma unroll 1
  for (int k = 0; k < kItems; ++k) {
    const int64_t position = begin + threadIdx.x + k * kBlockThreads;
    const bool missing = (asks >> k & 1) != 0;
    if (!__any_sync(kAllLanes, missing)) continue;
    const int32_t code = PlaceMissing(a, saw_layout, position, missing, shared);
    if (!missing) continue;
    bad += code == kSlotBadTable ? 1 : 0;
    WriteCode(a, position, code, block_counts);
  }
  if (a.mode != PlaceMode::kWriteRows) return;
  const uint64_t bad_in_warp = WarpSum64(static_cast<uint64_t>(bad));
  if (bad_in_warp != 0 && Lane() == 0) {
    AtomicAdd64(&a.table.counters[kBadTables], bad_in_warp);
  }
}

template <int kItems>
__global__ __launch_bounds__(kBlockThreads, 5) void PlaceKernel(
    const __grid_constant__ PlaceArgs a) {
  __shared__ SearchShared search[kBlockWarps];
  __shared__ uint32_t warp_sums[kBlockWarps];
  __shared__ DigitCounts block_counts;
  WaitForPrevious();
  const int64_t begin = int64_t{blockIdx.x} * kItems * kBlockThreads;
  const bool first = blockIdx.x == 0 && HasContexts(a.mode);
  uint32_t checksum = first ? 0 - WrittenChecksum(a) : 0;
  int32_t slots[kItems];
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    const int64_t position = begin + threadIdx.x + k * kBlockThreads;
    slots[k] = ReportedSlot(a, position, &checksum);
  }
  const bool active = IsActive(a);
  if (blockIdx.x == 0) OpenBooks(a, active);
  if (!active) return;
  BeginCounts(&block_counts);
  const bool saw_layout = SawLayout(a);
  AddBlockSum(checksum, warp_sums, &a.state->checksum);
  const int of_rows = a.table.cached() ? kSlotsUsed : kRows;
  const int64_t rows =
      saw_layout ? static_cast<int64_t>(a.table.counters[of_rows]) : 0;
  uint32_t asks = 0;
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    const int64_t position = begin + threadIdx.x + k * kBlockThreads;
    if (position >= a.batch.size) continue;
    if (!saw_layout || slots[k] == kSlotMissing) {
      asks |= 1U << k;
      continue;
    }
    if (slots[k] < kSlotBadTable || slots[k] >= rows) {
      a.state->outside = 1;
    } else if (slots[k] >= 0 && a.table.IsReserved(slots[k])) {
      asks |= 1U << k;
      continue;
    }
    WriteCode(a, position, slots[k], &block_counts);
  }
  if (__syncthreads_or(static_cast<int>(asks)) != 0) {
    PlaceMissingOnes<kItems>(a, saw_layout, begin, asks,
                             &search[threadIdx.x / kWarp], &block_counts);
    __syncthreads();
  }
  AddCounts(a, block_counts);
}

// Takes the key that position `first` is the first of, as number `number`.
// Returns its hash.
__device__ uint64_t TakeNewKey(const PlaceArgs& a, uint32_t first,
                               uint32_t cell, uint32_t number) {
  const PlacedBatch& placed = a.batch.Find(first);
  const int64_t i = first - placed.begin;
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

__global__ __launch_bounds__(kBlockThreads) void NumberKernel(
    const __grid_constant__ PlaceArgs a) {
  __shared__ uint32_t warp_sums[kBlockWarps];
  __shared__ uint32_t shared_tile;
  __shared__ uint32_t shared_before;
  __shared__ uint64_t hashes[kNumberTile];
  WaitForPrevious();
  if (!GoesThrough(a) || a.state->any_missing == 0) return;
  // Tiles are taken in order, so that those before this one are under way.
  if (threadIdx.x == 0) shared_tile = atomicAdd(&a.state->next_tile, 1U);
  __syncthreads();
  const uint32_t tile = shared_tile;
  const int64_t begin = tile * kNumberTile + threadIdx.x * kNumberItems;
  uint32_t cells[kNumberItems];
  bool is_first[kNumberItems];
  uint32_t count = 0;
#pragma unroll
  for (int k = 0; k < kNumberItems; ++k) {
    const int64_t i = begin + k;
    const int32_t code = i < a.batch.size ? a.codes[i] : 0;
    cells[k] = static_cast<uint32_t>(kFirstClaim - code);
    is_first[k] =
        code <= kFirstClaim && a.cells[cells[k]] == ~static_cast<uint32_t>(i);
    count += is_first[k] ? 1 : 0;
  }
  uint32_t in_block = 0;
  uint32_t number = BlockExclusiveSum(count, warp_sums, &in_block);
  if (threadIdx.x < kWarp) {
    const uint32_t before = LookBack(a.tiles, tile, in_block);
    if (threadIdx.x == 0) {
      shared_before = before;
      if (tile + 1 == gridDim.x) a.state->num_new = before + in_block;
    }
  }
  __syncthreads();
#pragma unroll
  for (int k = 0; k < kNumberItems; ++k) {
    if (!is_first[k]) continue;
    hashes[number] = TakeNewKey(a, static_cast<uint32_t>(begin + k), cells[k],
                                shared_before + number);
    ++number;
  }
  if (a.mode == PlaceMode::kStage) {
    __syncthreads();
    AddFingerprint(a, shared_before, in_block);
    return;
  }
  if (a.mode == PlaceMode::kNumber || a.table.cached()) return;
  InsertNewKeys(a, hashes, shared_before, in_block);
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
    const uint32_t key = SortKey(a, slot);
    a.codes[i] = static_cast<int32_t>(key);
    CountKey(a, key, block_counts);
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
  AddCounts(a, *block_counts);
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
  if (a.mode == PlaceMode::kUpdate) AddLookupCounts(a);
  if (threadIdx.x != 0) return;
  a.table.counters[kUnstaged] += a.state->unstaged;
  const uint64_t inserted = static_cast<uint64_t>(NumInserted(a));
  a.table.counters[kRows] = a.state->rows_before + inserted;
  a.table.counters[kInserts] += inserted;
  if (a.mode != PlaceMode::kUpdate) return;
  DispatchOptimizer(a.optimizer.kind, [&](auto optimizer) {
    using Scalars = typename decltype(optimizer)::Scalars;
    static_assert(sizeof(Scalars) <= sizeof(PlaceState::scalars));
    *reinterpret_cast<Scalars*>(a.state->scalars) =
        decltype(optimizer)::Prepare(a.optimizer, *a.learning_rate,
                                     a.state->step);
  });
  *a.step = a.state->step + 1;
  ++*a.generation;
}

__global__ __launch_bounds__(kBlockThreads) void AssignKernel(
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
    if (a.mode == PlaceMode::kUpdate) WriteNewRows(a);
  }
  if (last) CloseBooks(a);
}

}  // namespace

cudaError_t PlaceFind(cudaStream_t stream, const PlaceArgs& args) {
  const int64_t n = args.batch.size;
  const int64_t items = IsSmallBatch(n) ? 1 : 4;
  const auto place = IsSmallBatch(n) ? PlaceKernel<1> : PlaceKernel<4>;
  place<<<NumBlocks(n, items * kBlockThreads), kBlockThreads, 0, stream>>>(
      args);
  return cudaGetLastError();
}

cudaError_t PlaceNumber(cudaStream_t stream, const PlaceArgs& args) {
  if (args.batch.size == 0) return cudaSuccess;
  return LaunchNext(stream, NumberKernel,
                    NumBlocks(args.batch.size, kNumberTile), args);
}

cudaError_t PlaceSettle(cudaStream_t stream, const PlaceArgs& args) {
  ONEEMB_RETURN_IF_CUDA_ERROR(PlaceNumber(stream, args));
  const unsigned tiles = NumBlocks(args.batch.size, kAssignTile);
  return LaunchNext(stream, AssignKernel,
                    tiles < kMaxAssignBlocks ? tiles : kMaxAssignBlocks, args);
}

cudaError_t Place(cudaStream_t stream, const PlaceArgs& args) {
  ONEEMB_RETURN_IF_CUDA_ERROR(PlaceFind(stream, args));
  return PlaceSettle(stream, args);
}

void TakePlaceZeros(int64_t n, int64_t num_keys, bool shared_keys,
                    Workspace* workspace, PlaceArgs* args) {
  args->sort = PlanSort(n, num_keys);
  // Of a small batch the longest search is what a call waits for.
  const int64_t cells = (IsSmallBatch(n) ? 8 : 2) * n;
  args->num_cells = 2;
  while (args->num_cells < cells) args->num_cells *= 2;
  args->state = workspace->Take<PlaceState>(1);
  args->tiles = workspace->Take<uint64_t>(CeilDiv(n, kNumberTile));
  args->cells = workspace->Take<uint32_t>(args->num_cells);
  args->cell_tables =
      workspace->Take<uint32_t>(shared_keys ? args->num_cells : 0);
  if (!shared_keys) args->cell_tables = nullptr;
  TakeSortZeros(workspace, &args->sort);
}

void TakePlaceRest(int64_t n, Workspace* workspace, PlaceArgs* args) {
  args->codes = workspace->Take<int32_t>(n);
  args->new_keys = workspace->Take<NewKey>(n);
  for (SlotPosition*& entries : args->sort.entries) {
    entries = workspace->Take<SlotPosition>(n);
  }
}

}  // namespace oneemb::gpu
