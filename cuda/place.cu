#include "core/counters.h"
#include "core/optimizer_math.h"
#include "cuda/checksum.cuh"
#include "cuda/index.cuh"
#include "cuda/new_row.cuh"
#include "cuda/place.h"
#include "cuda/warp.cuh"

namespace oneemb::gpu {
namespace {

constexpr int kPlaceItems = 2;  // positions a thread
constexpr int64_t kPlaceTile = kPlaceItems * kBlockThreads;
constexpr int kNumberItems = 4;  // positions a thread
constexpr int64_t kNumberTile = kNumberItems * kBlockThreads;
static_assert(kBlockThreads == 1 << SortPlan::kMaxDigitBits,
              "a thread looks after one digit");

// A position that has claimed cell c has the code kFirstClaim - c.
constexpr int32_t kFirstClaim = -8;
// A cell holds 0, or ~ the first position of its key so far, or, when that is
// known, the number of its key, which is below every ~position.

__device__ bool SameKey(const PlaceArgs& a, Key key, uint32_t position) {
  const PlacedBatch& placed = a.batch.Find(position);
  const IdsView& ids = placed.batch.ids;
  const int64_t i = position - placed.begin;
  if (ids.Id(i) != key.id) return false;
  return a.keys.shared_keys || ids.Table(i) == key.table;
}

// The code of a position that has claimed the cell of its key.
__device__ int32_t Claim(const PlaceArgs& a, Key key, int32_t table,
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

// Whether this call may change anything, as far as its scalars tell.
__device__ bool IsActive(const PlaceArgs& a) {
  if (a.mode != PlaceMode::kUpdate) return true;
  const float rate = *a.learning_rate;
  return *a.apply && rate >= 0.0F && rate < FloatFromBits(kFloatInfinity);
}

// What one block does for all, before anything has changed.
__device__ void OpenBooks(const PlaceArgs& a, bool active) {
  if (threadIdx.x != 0) return;
  a.state->active = active ? 1 : 0;
  if (a.mode == PlaceMode::kNumber) return;
  a.state->rows_before = a.table.counters[kRows];
  a.state->step = *a.step;
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
__device__ bool GoesThrough(const PlaceState& state) {
  return state.active != 0 && state.checksum == 0 && state.outside == 0;
}

// The slot of a position as the lookup reported it, if it is to be trusted. Its
// part of the checksum is added to *checksum.
__device__ int32_t ReportedSlot(const PlaceArgs& a, bool saw_layout,
                                int64_t position, uint32_t* checksum) {
  if (position >= a.batch.size) return kSlotPadding;
  if (a.mode == PlaceMode::kWriteRows) return kSlotMissing;
  const PlacedBatch& placed = a.batch.Find(position);
  const IdsView& ids = placed.batch.ids;
  const int64_t i = position - placed.begin;
  const int32_t slot = placed.batch.slots[i];
  *checksum += ChecksumAt(ids, i, ids.Id(i), ids.Table(i), slot);
  if (!saw_layout) return kSlotMissing;
  const int64_t rows = static_cast<int64_t>(a.table.counters[kRows]);
  if (slot < kSlotBadTable || slot >= rows) a.state->outside = 1;
  return slot;
}

// Not inlined: where layouts match, which is always in a plain step, nothing is
// searched for, and the registers are better spent on more warps.
__device__ __noinline__ int32_t SearchAgain(const IndexView& index, Key key,
                                            bool searches,
                                            SearchShared* shared) {
  return ProbeIndex(index, key, searches, shared);
}

// The slot of a position, or the code of its claim, given what was reported;
// for a whole warp.
__device__ int32_t PlaceOne(const PlaceArgs& a, bool saw_layout,
                            int64_t position, int32_t code,
                            SearchShared* shared) {
  uint64_t id = 0;
  int32_t table = 0;
  bool missing = code == kSlotMissing;
  if (!__any_sync(kAllLanes, missing)) return code;
  if (missing) {
    const PlacedBatch& placed = a.batch.Find(position);
    id = placed.batch.ids.Id(position - placed.begin);
    table = placed.batch.ids.Table(position - placed.begin);
    const int32_t rejected = a.keys.Reject(id, table);
    missing = rejected == 0;
    code = missing ? kSlotMissing : rejected;
  }
  const Key key = a.keys.MakeKey(id, table);
  if (!saw_layout && a.mode != PlaceMode::kNumber) {
    const int32_t slot = SearchAgain(a.table.index, key, missing, shared);
    code = missing ? slot : code;
    missing = missing && slot < 0;
  }
  return missing ? Claim(a, key, table, static_cast<uint32_t>(position)) : code;
}

__global__ __launch_bounds__(kBlockThreads, 6) void PlaceKernel(
    const __grid_constant__ PlaceArgs a) {
  __shared__ SearchShared search[kBlockWarps];
  __shared__ uint32_t warp_sums[kBlockWarps];
  const bool active = IsActive(a);
  if (blockIdx.x == 0) OpenBooks(a, active);
  if (!active) return;
  const bool saw_layout = SawLayout(a);
  const int64_t begin = int64_t{blockIdx.x} * kPlaceTile + threadIdx.x;
  const bool first = blockIdx.x == 0 && a.mode != PlaceMode::kWriteRows;
  uint32_t checksum = first ? 0 - WrittenChecksum(a) : 0;
  int32_t reported[kPlaceItems];
#pragma unroll
  for (int k = 0; k < kPlaceItems; ++k) {
    reported[k] =
        ReportedSlot(a, saw_layout, begin + k * kBlockThreads, &checksum);
  }
  AddBlockSum(checksum, warp_sums, &a.state->checksum);
  int missing = 0;
  int bad = 0;
#pragma unroll
  for (int k = 0; k < kPlaceItems; ++k) {
    const int64_t position = begin + k * kBlockThreads;
    const int32_t code = PlaceOne(a, saw_layout, position, reported[k],
                                  &search[threadIdx.x / kWarp]);
    missing |= code <= kFirstClaim ? 1 : 0;
    bad += code == kSlotBadTable ? 1 : 0;
    if (position < a.batch.size) a.codes[position] = code;
  }
  if (missing != 0) a.state->any_missing = 1;
  if (a.mode != PlaceMode::kWriteRows) return;
  const uint64_t bad_in_warp = WarpSum64(static_cast<uint64_t>(bad));
  if (bad_in_warp != 0 && Lane() == 0) {
    AtomicAdd64(&a.table.counters[kBadTables], bad_in_warp);
  }
}

// Takes the key that position `first` is the first of, as number `number`.
// Returns what it adds to the version of the layout.
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
  a.cells[cell] = number;
  a.new_keys[number] = {id, key.table, static_cast<uint16_t>(table)};
  if (a.mode == PlaceMode::kNumber) return 0;
  const int64_t slot = static_cast<int64_t>(a.state->rows_before) + number;
  if (slot >= a.table.capacity) return 0;
  const uint64_t hash = HashKey(key);
  CompeteForEntry(a.table.index, hash, static_cast<int32_t>(slot));
  return LayoutTerm(hash, static_cast<int32_t>(slot));
}

__global__ __launch_bounds__(kBlockThreads) void NumberKernel(
    const __grid_constant__ PlaceArgs a) {
  __shared__ uint32_t warp_sums[kBlockWarps];
  __shared__ uint32_t shared_tile;
  __shared__ uint32_t shared_before;
  if (!GoesThrough(*a.state) || a.state->any_missing == 0) return;
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
    const int32_t code = i < a.batch.size ? a.codes[i] : kSlotPadding;
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
  number += shared_before;
  uint64_t version = 0;
#pragma unroll
  for (int k = 0; k < kNumberItems; ++k) {
    if (!is_first[k]) continue;
    version +=
        TakeNewKey(a, static_cast<uint32_t>(begin + k), cells[k], number);
    ++number;
  }
  if (a.mode == PlaceMode::kNumber) return;
  version = WarpSum64(version);
  if (version != 0 && threadIdx.x % kWarp == 0) {
    AtomicAdd64(a.table.layout_version, version);
  }
}

// The new keys that get a row.
__device__ int64_t NumInserted(const PlaceArgs& a) {
  if (a.mode == PlaceMode::kNumber) return 0;
  const int64_t room =
      a.table.capacity - static_cast<int64_t>(a.state->rows_before);
  const int64_t wanted = static_cast<int64_t>(a.state->num_new);
  return wanted < room ? wanted : room;
}

__device__ int32_t FinalSlot(const PlaceArgs& a, int32_t code) {
  if (code > kFirstClaim) return code;
  const int64_t number = a.cells[kFirstClaim - code];
  if (a.mode == PlaceMode::kNumber) return static_cast<int32_t>(number);
  const int64_t slot = static_cast<int64_t>(a.state->rows_before) + number;
  return slot < a.table.capacity ? static_cast<int32_t>(slot) : kSlotMissing;
}

// Sort keys of the tile of this block, and their counts.
__device__ void AssignTile(const PlaceArgs& a, uint32_t* tile_counts) {
  const TileCounts counts = CountsOfPass(a.sort, 0);
  const int64_t tile = blockIdx.x;
  const int64_t begin = tile << a.sort.tile_bits;
  tile_counts[threadIdx.x] = 0;
  __syncthreads();
  int refused = 0;
  for (int j = threadIdx.x; j < 1 << a.sort.tile_bits; j += kBlockThreads) {
    const int64_t i = begin + j;
    if (i >= a.sort.n) break;
    const int32_t slot = FinalSlot(a, a.codes[i]);
    refused += slot == kSlotMissing ? 1 : 0;
    const uint32_t key =
        slot >= 0 ? static_cast<uint32_t>(slot) : a.sort.sentinel;
    a.codes[i] = static_cast<int32_t>(key);
    atomicAdd(tile_counts + counts.Digit(key), 1U);
  }
  __syncthreads();
  const uint32_t digit = threadIdx.x;
  if (digit < 1U << counts.digit_bits && tile < counts.num_tiles) {
    counts.OfTile(tile)[digit] = tile_counts[digit];
    atomicAdd(counts.OfGroup(tile / counts.group_tiles) + digit,
              tile_counts[digit]);
  }
  const uint64_t refused_in_warp = WarpSum64(static_cast<uint64_t>(refused));
  if (refused_in_warp != 0 && threadIdx.x % kWarp == 0) {
    AtomicAdd64(&a.table.counters[kOverflows], refused_in_warp);
  }
}

__device__ void WriteNewRows(const PlaceArgs& a) {
  const RowInitializers rows = a.initializers.View();
  const int64_t inserted = NumInserted(a);
  const uint32_t parts =
      a.mode == PlaceMode::kUpdate
          ? static_cast<uint32_t>(CeilDiv(a.table.row_words, 4))
          : 1;
  const int64_t threads = int64_t{gridDim.x} * kBlockThreads;
  const int64_t thread = int64_t{blockIdx.x} * kBlockThreads + threadIdx.x;
  for (int64_t i = thread; i < inserted * parts; i += threads) {
    const int64_t number = i / parts;
    const uint32_t part = static_cast<uint32_t>(i % parts);
    const NewKey key = a.new_keys[number];
    const int64_t slot = static_cast<int64_t>(a.state->rows_before) + number;
    if (part == 0) {
      const Key found{key.id, key.table};
      FinishEntry(a.table.index, found, HashKey(found),
                  static_cast<int32_t>(slot));
    }
    if (a.mode == PlaceMode::kUpdate) {
      WriteNewWords(rows, a.optimizer, a.embedding_dim, a.table.row_words,
                    key.init_table, key.id, part, a.table.Row(slot));
    }
  }
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
  __shared__ uint32_t tile_counts[kBlockThreads];
  const bool last = blockIdx.x + 1 == gridDim.x;
  if (!GoesThrough(*a.state)) {
    if (last && threadIdx.x == 0) Refuse(a);
    return;
  }
  AssignTile(a, tile_counts);
  if (a.state->num_new != 0) WriteNewRows(a);
  if (last) CloseBooks(a);
}

}  // namespace

cudaError_t Place(cudaStream_t stream, const PlaceArgs& args) {
  const int64_t n = args.batch.size;
  PlaceKernel<<<NumBlocks(n, kPlaceTile), kBlockThreads, 0, stream>>>(args);
  ONEEMB_RETURN_IF_CUDA_ERROR(cudaGetLastError());
  if (n > 0) {
    NumberKernel<<<NumBlocks(n, kNumberTile), kBlockThreads, 0, stream>>>(args);
    ONEEMB_RETURN_IF_CUDA_ERROR(cudaGetLastError());
  }
  const unsigned blocks = NumBlocks(n, int64_t{1} << args.sort.tile_bits);
  AssignKernel<<<blocks, kBlockThreads, 0, stream>>>(args);
  return cudaGetLastError();
}

void TakePlaceSpace(int64_t n, bool shared_keys, Workspace* workspace,
                    PlaceArgs* args) {
  args->num_cells = 2;
  while (args->num_cells < 2 * n) args->num_cells *= 2;
  args->state = workspace->Take<PlaceState>(1);
  args->tiles = workspace->Take<uint64_t>(CeilDiv(n, kNumberTile));
  args->cells = workspace->Take<uint32_t>(args->num_cells);
  args->cell_tables =
      workspace->Take<uint32_t>(shared_keys ? args->num_cells : 0);
  if (!shared_keys) args->cell_tables = nullptr;
  args->sort.counts =
      workspace->Take<uint32_t>(args->sort.pass_counts() * args->sort.passes);
}

}  // namespace oneemb::gpu
