#include "core/counters.h"
#include "cuda/chain.cuh"
#include "cuda/checksum.cuh"
#include "cuda/claim.cuh"
#include "cuda/place.h"
#include "cuda/search.cuh"
#include "cuda/sort_keys.cuh"
#include "cuda/warp.cuh"

namespace oneemb::gpu {
namespace {

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
  // A cached table takes no slots here, and counts beyond those that it has.
  a.state->rows_before = a.table.cached()
                             ? a.table.counters[kRows]
                             : static_cast<uint64_t>(a.table.slots_used());
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

// Writes the sort key of a position, and counts its digits.
__device__ void WriteKey(const PlaceArgs& a, int64_t position, int32_t slot,
                         DigitCounts* block_counts) {
  const uint32_t key = SortKey(a.sort, slot);
  a.codes[position] = static_cast<int32_t>(key);
  CountKey(a.sort, key, block_counts);
}

// Room for the positions of a block that the lookup reported missing.
template <int kItems>
struct MissingShared {
  SearchShared search[kBlockWarps];
  uint32_t warp_sums[kBlockWarps];
  uint16_t items[kItems * kBlockThreads];  // where they are in the block's tile
};

// Places the positions that the lookup reported missing: those of this thread
// whose bit of `asks` is set; for a whole block. They are shared out anew: each
// takes several trips to memory, one after the other. Not inlined: a step that
// trains only rows that are there does without, and its registers are better
// spent on more warps.
template <int kItems>
__device__ __noinline__ void PlaceMissingOnes(const PlaceArgs& a,
                                              bool saw_layout, int64_t begin,
                                              uint32_t asks,
                                              MissingShared<kItems>* shared,
                                              DigitCounts* block_counts) {
  const unsigned thread = threadIdx.x;
  uint32_t count = 0;
  uint32_t at = BlockExclusiveSum(__popc(asks), shared->warp_sums, &count);
  for (; asks != 0; asks &= asks - 1) {
    shared->items[at++] =
        static_cast<uint16_t>(LowestBit(asks) * kBlockThreads + thread);
  }
  __syncthreads();
  int bad = 0;
  bool claims = false;
#pragma unroll 1
  for (uint32_t k = thread; k - Lane() < count; k += kBlockThreads) {
    const bool missing = k < count;
    const int64_t position = begin + shared->items[missing ? k : 0];
    const int32_t code = PlaceMissing(a, saw_layout, position, missing,
                                      &shared->search[thread / kWarp]);
    if (!missing) continue;
    bad += code == kSlotBadTable ? 1 : 0;
    if (code <= kFirstClaim) {
      claims = true;
      a.codes[position] = code;
    } else {
      WriteKey(a, position, code, block_counts);
    }
  }
  // One word that all threads wrote would take most of the kernel's time.
  if (__syncthreads_or(claims ? 1 : 0) != 0 && thread == 0) {
    a.state->any_missing = 1;
  }
  if (a.mode != PlaceMode::kWriteRows) return;
  const uint64_t bad_in_warp = WarpSum64(static_cast<uint64_t>(bad));
  if (bad_in_warp != 0 && Lane() == 0) {
    AtomicAdd64(&a.table.counters[kBadTables], bad_in_warp);
  }
}

constexpr int kZeroItems = 4;  // stores a thread

// In the place of a memset, which no kernel can be chained to.
__global__ __launch_bounds__(kBlockThreads) void ZeroKernel(uint4* data,
                                                            int64_t count) {
  LetNextBegin();
  int64_t i = int64_t{blockIdx.x} * kZeroItems * kBlockThreads + threadIdx.x;
#pragma unroll
  for (int k = 0; k < kZeroItems; ++k, i += kBlockThreads) {
    if (i < count) data[i] = {0, 0, 0, 0};
  }
}

// Of a workspace, in whole lines.
cudaError_t FillZeros(cudaStream_t stream, const Zeros& zeros) {
  const int64_t count = zeros.bytes / int64_t{sizeof(uint4)};
  ZeroKernel<<<NumBlocks(count, kZeroItems * kBlockThreads), kBlockThreads, 0,
               stream>>>(static_cast<uint4*>(zeros.data), count);
  return cudaGetLastError();
}

template <int kItems>
__global__ __launch_bounds__(kBlockThreads, 4) void PlaceKernel(
    const __grid_constant__ PlaceArgs a) {
  __shared__ MissingShared<kItems> missing;
  __shared__ DigitCounts block_counts;
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
  // Asked for before it is known whether they matter.
  const int64_t rows = a.mode == PlaceMode::kUpdate ? a.table.slots_used() : 0;
  const bool saw_layout = SawLayout(a);
  // For zeros: all that is read above was there before. The kernels behind this
  // one rely on zeros too, some of them before they wait.
  AwaitPrevious();
  LetNextBegin();
  if (blockIdx.x == 0) OpenBooks(a, active);
  if (!active) return;
  BeginCounts(&block_counts);
  AddBlockSum(checksum, missing.warp_sums, &a.state->checksum);
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
    WriteKey(a, position, slots[k], &block_counts);
  }
  if (__syncthreads_or(static_cast<int>(asks)) != 0) {
    PlaceMissingOnes<kItems>(a, saw_layout, begin, asks, &missing,
                             &block_counts);
    __syncthreads();
  }
  AddCounts(a.sort, block_counts);
}

}  // namespace

cudaError_t PlaceFind(cudaStream_t stream, const PlaceArgs& args,
                      const Zeros& zeros) {
  const int64_t n = args.batch.size;
  // As many a thread as let all blocks run at once, up to eight.
  constexpr int64_t kManyPositions = int64_t{1} << 19;
  const int64_t items = IsSmallBatch(n) ? 1 : n <= kManyPositions ? 4 : 8;
  const auto place = items == 1   ? PlaceKernel<1>
                     : items == 4 ? PlaceKernel<4>
                                  : PlaceKernel<8>;
  ONEEMB_RETURN_IF_CUDA_ERROR(FillZeros(stream, zeros));
  return LaunchNext(stream, place, NumBlocks(n, items * kBlockThreads), args);
}

cudaError_t Place(cudaStream_t stream, const PlaceArgs& args,
                  const Zeros& zeros) {
  ONEEMB_RETURN_IF_CUDA_ERROR(PlaceFind(stream, args, zeros));
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
  args->firsts = TakeTileSums(CeilDiv(n, kNumberTile), workspace);
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
