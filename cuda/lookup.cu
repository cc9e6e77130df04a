#include "core/counters.h"
#include "cuda/arguments.h"
#include "cuda/chain.cuh"
#include "cuda/checksum.cuh"
#include "cuda/lanes.h"
#include "cuda/lookup.h"
#include "cuda/new_row.cuh"
#include "cuda/search.cuh"
#include "cuda/vector.cuh"
#include "cuda/warp.cuh"

namespace oneemb::gpu {
namespace {

// Rows whose loads are under way at once, for each lane.
constexpr int kAhead = 4;

// A block's room is free only when its last warp is done.
constexpr int kLookupWarps = 2;
constexpr int kLookupThreads = kLookupWarps * kWarp;

// What the ids of one block came to, in the order of LookupCount.
struct alignas(16) BlockCounts {
  uint32_t words[kNumLookupCounts];
};

struct LookupArgs {
  TableView table;
  KeyRules keys;
  IdsView ids;
  InitializerArgs initializers;
  OptimizerConfig optimizer;  // ReadRows
  RowShape shape;
  LookupOutput out;
  int32_t warp_ids;  // ids a warp looks up, at most a warp
  int64_t num_blocks;
  BlockCounts* block_counts;  // [num_blocks]
  LookupState* state;         // of a cached table
  uint32_t* rows;             // ReadRows
};

// The id of one lane and where its row is.
struct Found {
  uint64_t id;
  int32_t table;
  int32_t slot;
};

// For a whole warp.
__device__ Found FindOne(const LookupArgs& a, int64_t i, bool valid,
                         SearchShared* shared) {
  Found found{0, 0, kSlotPadding};
  if (valid) {
    found.id = a.ids.Id(i);
    found.table = a.ids.Table(i);
    found.slot = a.keys.Reject(found.id, found.table);
  }
  bool searches = found.slot == 0;
  if (a.state != nullptr && a.state->stale != 0 && searches) {
    searches = false;  // of a stale table no row is read
    found.slot = kSlotMissing;
  }
  const int32_t slot = ProbeIndex(
      a.table.index, a.keys.MakeKey(found.id, found.table), searches, shared);
  if (searches) found.slot = slot;
  if (valid) a.out.slots[i] = found.slot;
  return found;
}

// Whether a position reads no row of the table.
__device__ bool IsWithoutRow(const LookupArgs& a, int32_t slot) {
  return slot < 0 || a.table.IsReserved(slot);
}

// What the lanes of a warp have found; every lane gets one word of it. Of a
// cached table a key with a reserved slot is a miss, and one without a slot was
// not staged.
__device__ uint32_t CountFound(const LookupArgs& a, bool valid, int32_t slot,
                               uint32_t checksum) {
  const bool has_row = valid && !IsWithoutRow(a, slot);
  bool missing = valid && slot == kSlotMissing;
  if (a.table.cached()) {
    const uint32_t unstaged = __ballot_sync(kAllLanes, missing);
    if (Lane() == 0 && unstaged != 0) {
      atomicAdd(&a.state->unstaged, static_cast<uint32_t>(__popc(unstaged)));
    }
    missing = valid && slot >= 0 && !has_row;
  }
  const uint32_t hits = __ballot_sync(kAllLanes, has_row);
  const uint32_t misses = __ballot_sync(kAllLanes, missing);
  const uint32_t bad = __ballot_sync(kAllLanes, valid && slot == kSlotBadTable);
  const uint32_t sum = __reduce_add_sync(kAllLanes, checksum);
  const int lane = Lane();
  const uint32_t lanes = lane == kLookupHits     ? hits
                         : lane == kLookupMisses ? misses
                                                 : bad;
  return lane <= kLookupBadTables ? static_cast<uint32_t>(__popc(lanes)) : sum;
}

// Copies the rows of a warp's ids, from position `first` on, to the output;
// `slot` is that of this lane's id. As many lanes a row as it has column
// vectors, and kAhead rows under way at once for each lane.
template <class Access, int kWidth>
__device__ __forceinline__ void GatherRows(const LookupArgs& a, uint32_t first,
                                           int32_t slot) {
  using Out = Packed<Access, kWidth>;
  using Floats = PackedFloats<kWidth>;
  const int dim = a.shape.dim;
  const int groups = a.shape.groups();
  const int group = a.shape.GroupOf(Lane());
  const int first_column = a.shape.LaneOf(Lane()) * kWidth;
  const int column_step = a.shape.lanes() * kWidth;
  const uint32_t row_bytes =
      static_cast<uint32_t>(a.table.row_words * sizeof(uint32_t));
  const float* const rows = reinterpret_cast<const float*>(a.table.rows);
  auto* out = static_cast<typename Access::Storage*>(a.out.activations) +
              uint64_t{first + group} * static_cast<uint32_t>(dim);
  const int out_step = groups * dim;
  for (int row = 0; row < a.warp_ids; row += groups * kAhead) {
    int32_t slots[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      const int from = row + k * groups + group;
      const int32_t its = __shfl_sync(kAllLanes, slot, from);
      slots[k] = from < kWarp ? its : kSlotPadding;
    }
    for (int c = first_column; c < dim; c += column_step) {
      // By bytes, an address is one multiplication with an addition.
      const auto* const column = reinterpret_cast<const char*>(rows + c);
      typename Floats::Type words[kAhead];
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        if (slots[k] < 0) continue;
        words[k] = Floats::LoadConstant(reinterpret_cast<const float*>(
            column + uint64_t{static_cast<uint32_t>(slots[k])} * row_bytes));
      }
      auto* to = out + c;
#pragma unroll
      for (int k = 0; k < kAhead; ++k) {
        if (slots[k] >= 0) {
          Out::StoreOnce(to, Out::Pack(Floats::Unpack(words[k])));
        }
        to += out_step;
      }
    }
    out += kAhead * out_step;
  }
}

// What one block does for all, before Fill adds up the counts.
__device__ void BeginOutput(const LookupArgs& a) {
  if (threadIdx.x < kNumLookupCounts) a.out.counts[threadIdx.x] = 0;
  if (threadIdx.x == 0) *a.out.seen_version = *a.table.layout_version;
}

// Finds the slots of ids and copies their rows. While the warps that search
// wait, others keep the memory busy.
template <class Access, int kWidth>
__global__ __launch_bounds__(kLookupThreads, 20) void LookupKernel(
    const __grid_constant__ LookupArgs a) {
  __shared__ SearchShared search[kLookupWarps];
  __shared__ uint32_t counts[kLookupWarps][kNumLookupCounts];
  WaitForPrevious();
  if (blockIdx.x == 0) BeginOutput(a);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const uint32_t first = (blockIdx.x * kLookupWarps + warp) * a.warp_ids;
  const uint32_t i = first + Lane();
  const bool valid = Lane() < a.warp_ids && i < a.ids.size;
  const Found mine = FindOne(a, i, valid, &search[warp]);
  const uint32_t checksum =
      valid ? ChecksumAt(a.ids, i, mine.id, mine.table, mine.slot) : 0;
  const uint32_t word = CountFound(a, valid, mine.slot, checksum);
  if (Lane() < kNumLookupCounts) counts[warp][Lane()] = word;
  GatherRows<Access, kWidth>(a, first, mine.slot);
  __syncthreads();
  if (threadIdx.x >= kNumLookupCounts) return;
  uint32_t sum = 0;
  for (int w = 0; w < kLookupWarps; ++w) sum += counts[w][threadIdx.x];
  a.block_counts[blockIdx.x].words[threadIdx.x] = sum;
}

// An id that has no row, of a block's tile.
struct alignas(16) WithoutRow {
  uint64_t id;
  int32_t slot;
  uint16_t table;    // where that is one
  uint16_t in_tile;  // which id it is
};

// Writes columns c ... c + 3, as many as there are.
template <class Access, int kWidth>
__device__ __forceinline__ void StoreFour(const float (&values)[4], int c,
                                          int dim,
                                          typename Access::Storage* out) {
  using Out = Packed<Access, kWidth>;
#pragma unroll
  for (int k = 0; k < 4; k += kWidth) {
    if (kWidth < 4 && c + k >= dim) break;
    Columns<kWidth> columns;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) columns.v[i] = values[k + i];
    Out::Store(out + c + k, Out::Pack(columns));
  }
}

// Writes the activation of an id that has no row, from column `c` on every
// `step` columns, four of them.
template <class Access, int kWidth, Draws kDraws>
__device__ __forceinline__ void FillRow(const LookupArgs& a,
                                        const RowInitializers& initializers,
                                        const WithoutRow& item, int c, int step,
                                        typename Access::Storage* out) {
  const int dim = a.shape.dim;
  const bool unstaged = a.table.cached() && item.slot == kSlotMissing;
  float values[4] = {};
  if (item.slot == kSlotPadding || item.slot == kSlotBadTable || unstaged) {
    const bool zero = item.slot == kSlotPadding;
    for (float& x : values) x = zero ? 0.0F : FloatFromBits(kFloatNaN);
    for (; c < dim; c += step) StoreFour<Access, kWidth>(values, c, dim, out);
    return;
  }
  const InitialRow<kDraws> row(initializers, item.table, item.id);
  for (; c < dim; c += step) {
    row.Draw(static_cast<uint32_t>(c) / 4, values);
    StoreFour<Access, kWidth>(values, c, dim, out);
  }
}

// Ids that a thread of Fill looks after; one where the batch is small. Each
// lane of a block's first warp reads what one block of Lookup has counted.
constexpr int kFillItems = 8;
static_assert(kFillItems * kBlockThreads <= kWarp * kLookupThreads,
              "a warp has a lane for each block of Lookup");

// Adds to the counts of the call what Lookup has counted for `size` ids from
// `first` on; whether all of them have rows. For a whole block.
__device__ bool AddTileCounts(const LookupArgs& a, int64_t first,
                              int64_t size) {
  const unsigned lane = threadIdx.x;
  bool complete = true;
  if (lane < kWarp) {
    const int block_ids = kLookupWarps * a.warp_ids;
    BlockCounts counts{};
    if (int64_t{lane} * block_ids < size) {
      counts = a.block_counts[first / block_ids + lane];
    }
    uint32_t mine = 0;
    for (int k = 0; k < kNumLookupCounts; ++k) {
      const uint32_t sum = __reduce_add_sync(kAllLanes, counts.words[k]);
      if (k == kLookupHits) complete = sum == size;
      if (Lane() == k) mine = sum;
    }
    if (lane < kNumLookupCounts && mine != 0) {
      atomicAdd(a.out.counts + lane, mine);
    }
  }
  return __syncthreads_and(complete ? 1 : 0) != 0;
}

// Reads this thread's ids of a tile, those that `wanted` has a bit for.
template <int kItems>
__device__ void ReadIds(const IdsView& ids, int64_t first, uint32_t wanted,
                        uint64_t (&found)[kItems]) {
  const int64_t i = first + threadIdx.x;
  if (ids.words_per_id == 2) {
    const auto* const pairs = reinterpret_cast<const uint2*>(ids.words) + i;
#pragma unroll
    for (int k = 0; k < kItems; ++k) {
      if ((wanted >> k & 1) == 0) continue;
      const uint2 pair = pairs[k * kBlockThreads];
      found[k] = pair.x | uint64_t{pair.y} << 32;
    }
    return;
  }
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    if ((wanted >> k & 1) != 0) found[k] = ids.words[i + k * kBlockThreads];
  }
}

// Lists the ids of a tile, from `first` on, that have no row; for a whole
// block. Returns how many there are. Loads of one kind are all under way before
// the first is looked at.
template <int kItems>
__device__ int ListWithoutRow(const LookupArgs& a, int64_t first,
                              uint32_t* warp_sums, WithoutRow* items) {
  const unsigned thread = threadIdx.x;
  int32_t slots[kItems];
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    const int64_t i = first + k * kBlockThreads + thread;
    slots[k] = i < a.ids.size ? a.out.slots[i] : 0;
  }
  uint32_t mine = 0;
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    const int64_t i = first + k * kBlockThreads + thread;
    if (i < a.ids.size && IsWithoutRow(a, slots[k])) mine |= 1U << k;
  }
  if (__syncthreads_or(static_cast<int>(mine)) == 0) return 0;
  uint64_t ids[kItems] = {};
  ReadIds(a.ids, first, mine, ids);
  uint32_t count = 0;
  uint32_t at = BlockExclusiveSum(__popc(mine), warp_sums, &count);
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    if ((mine >> k & 1) == 0) continue;
    const unsigned in_tile = k * kBlockThreads + thread;
    items[at++] = {ids[k], slots[k],
                   static_cast<uint16_t>(a.ids.Table(first + in_tile)),
                   static_cast<uint16_t>(in_tile)};
  }
  __syncthreads();
  return static_cast<int>(count);
}

// The lanes that draw one activation of so many parts of four columns: few, for
// what it takes to begin one, but those of wide rows write 64 bytes at once.
__device__ __forceinline__ int FillLanes(int parts) {
  return parts > 16 ? 4 : (parts > 1 ? 2 : 1);
}

// The blocks of Fill that a multiprocessor has room for: all that there are for
// a million ids.
constexpr int FillBlocks(Draws draws) {
  return draws == Draws::kUniform ? 4 : 3;
}

// Writes the activations of ids that have no row, over what a reserved slot of
// a cached table held, and adds up what Lookup has counted. Mostly there is
// nothing to write: few blocks find that out.
template <class Access, int kWidth, int kItems, Draws kDraws>
__global__ __launch_bounds__(kBlockThreads, FillBlocks(kDraws)) void FillKernel(
    const __grid_constant__ LookupArgs a) {
  constexpr int kTile = kItems * kBlockThreads;
  __shared__ uint32_t warp_sums[kBlockWarps];
  __shared__ WithoutRow items[kTile];
  WaitForPrevious();
  const int64_t first = int64_t{blockIdx.x} * kTile;
  const int64_t left = a.ids.size - first;
  if (left <= 0) return BeginOutput(a);  // no ids, and no Lookup
  if (AddTileCounts(a, first, left < kTile ? left : kTile)) return;
  const int count = ListWithoutRow<kItems>(a, first, warp_sums, items);
  const RowInitializers initializers = a.initializers.View();
  const int dim = a.shape.dim;
  const int thread = static_cast<int>(threadIdx.x);
  const int lanes = FillLanes(static_cast<int>(CeilDiv(dim, 4)));
  auto* const out =
      static_cast<typename Access::Storage*>(a.out.activations) + first * dim;
  for (int k = thread / lanes; k < count; k += kBlockThreads / lanes) {
    const WithoutRow item = items[k];
    FillRow<Access, kWidth, kDraws>(a, initializers, item,
                                    4 * (thread & (lanes - 1)), 4 * lanes,
                                    out + int64_t{item.in_tile} * dim);
  }
}

// One warp for 32 ids; no part of a step, so nothing is done to hurry it.
__global__ __launch_bounds__(kBlockThreads) void ReadRowsKernel(
    const __grid_constant__ LookupArgs a) {
  __shared__ SearchShared search[kBlockWarps];
  const int64_t i = int64_t{blockIdx.x} * kBlockThreads + threadIdx.x;
  Found mine = FindOne(a, i, i < a.ids.size, &search[threadIdx.x / kWarp]);
  // A reserved slot has no row yet.
  if (mine.slot >= 0 && a.table.IsReserved(mine.slot)) {
    mine.slot = kSlotMissing;
    a.out.slots[i] = kSlotMissing;
  }
  const int64_t first = i - Lane();
  const RowInitializers rows = a.initializers.View();
  for (int k = 0; k < kWarp && first + k < a.ids.size; ++k) {
    const uint64_t id = __shfl_sync(kAllLanes, mine.id, k);
    const int32_t table = __shfl_sync(kAllLanes, mine.table, k);
    const int32_t slot = __shfl_sync(kAllLanes, mine.slot, k);
    uint32_t* const out = a.rows + (first + k) * a.table.row_words;
    if (slot == kSlotMissing) {
      const InitialRow<Draws::kAny> initial(rows, static_cast<uint16_t>(table),
                                            id);
      for (int64_t p = Lane(); p < CeilDiv(a.table.row_words, 4); p += kWarp) {
        WriteNewWords(initial, a.optimizer, a.shape.dim, a.table.row_words,
                      static_cast<uint32_t>(p), out);
      }
      continue;
    }
    for (int64_t w = Lane(); w < a.table.row_words; w += kWarp) {
      out[w] = slot >= 0 ? a.table.Row(slot)[w] : 0;
    }
  }
}

LookupArgs MakeArgs(const TableView& table, const TableRules& rules,
                    const IdsView& ids) {
  LookupArgs args{};
  args.table = table;
  args.keys = rules.keys;
  args.ids = ids;
  args.optimizer = rules.optimizer;
  args.shape = ShapeRows(rules.embedding_dim, RowWidth(rules.embedding_dim));
  return args;
}

// Small batches have too few warps to keep the memory busy.
int32_t WarpIds(int64_t n) { return IsSmallBatch(n) ? kWarp / 2 : kWarp; }

int64_t LookupBlocks(int64_t n) {
  return CeilDiv(n, kLookupWarps * WarpIds(n));
}

template <class Access, int kWidth, int kItems>
cudaError_t LaunchFill(cudaStream_t stream, const LookupArgs& args) {
  const auto fill = args.initializers.draws == Draws::kUniform
                        ? FillKernel<Access, kWidth, kItems, Draws::kUniform>
                        : FillKernel<Access, kWidth, kItems, Draws::kAny>;
  return LaunchNext(stream, fill,
                    NumBlocks(args.ids.size, kItems * kBlockThreads), args);
}

template <class Access, int kWidth>
cudaError_t LaunchLookup(cudaStream_t stream, const LookupArgs& args,
                         const LookupHooks* hooks) {
  const int64_t n = args.ids.size;
  if (hooks != nullptr) {
    ONEEMB_RETURN_IF_CUDA_ERROR(hooks->before_find(args.state));
  }
  if (n > 0) {
    const auto blocks = static_cast<unsigned>(args.num_blocks);
    LookupKernel<Access, kWidth><<<blocks, kLookupThreads, 0, stream>>>(args);
    ONEEMB_RETURN_IF_CUDA_ERROR(cudaGetLastError());
  }
  if (hooks != nullptr) {
    ONEEMB_RETURN_IF_CUDA_ERROR(hooks->after_find(args.state));
  }
  return IsSmallBatch(n) ? LaunchFill<Access, kWidth, 1>(stream, args)
                         : LaunchFill<Access, kWidth, kFillItems>(stream, args);
}

}  // namespace

int64_t LookupSpace(const TableRules& rules, int64_t n) {
  Workspace workspace;
  workspace.Take<BlockCounts>(LookupBlocks(n));
  workspace.Take<LookupState>(1);
  MeasureInitializerArgs(rules.initializers.num_columns, rules.keys.num_tables,
                         &workspace);
  return workspace.used();
}

cudaError_t Lookup(cudaStream_t stream, const TableView& table,
                   const TableRules& rules, const IdsView& ids,
                   const LookupOutput& out, void* workspace_base,
                   const LookupHooks* hooks) {
  LookupArgs args = MakeArgs(table, rules, ids);
  args.out = out;
  Workspace workspace(workspace_base);
  args.warp_ids = WarpIds(ids.size);
  args.num_blocks = LookupBlocks(ids.size);
  args.block_counts = workspace.Take<BlockCounts>(args.num_blocks);
  auto* const state = workspace.Take<LookupState>(1);
  args.state = table.cached() ? state : nullptr;
  ONEEMB_RETURN_IF_CUDA_ERROR(
      MakeInitializerArgs(stream, rules.initializers, rules.keys.num_tables,
                          &workspace, &args.initializers));
  cudaError_t error = cudaSuccess;
  DispatchFloat(out.type, [&](auto access) {
    using Access = decltype(access);
    error = RowWidth(args.shape.dim) == 4
                ? LaunchLookup<Access, 4>(stream, args, hooks)
                : LaunchLookup<Access, 1>(stream, args, hooks);
  });
  return error;
}

cudaError_t ReadRows(cudaStream_t stream, const TableView& table,
                     const TableRules& rules, const IdsView& ids,
                     uint32_t* rows, int32_t* slots, void* workspace_base) {
  LookupArgs args = MakeArgs(table, rules, ids);
  args.rows = rows;
  args.out.slots = slots;
  Workspace workspace(workspace_base);
  ONEEMB_RETURN_IF_CUDA_ERROR(
      MakeInitializerArgs(stream, rules.initializers, rules.keys.num_tables,
                          &workspace, &args.initializers));
  ReadRowsKernel<<<NumBlocks(ids.size, kBlockThreads), kBlockThreads, 0,
                   stream>>>(args);
  return cudaGetLastError();
}

}  // namespace oneemb::gpu
