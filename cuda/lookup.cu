#include "core/counters.h"
#include "cuda/arguments.h"
#include "cuda/chain.cuh"
#include "cuda/checksum.cuh"
#include "cuda/index.cuh"
#include "cuda/lanes.h"
#include "cuda/lookup.h"
#include "cuda/new_row.cuh"
#include "cuda/vector.cuh"
#include "cuda/warp.cuh"

namespace oneemb::gpu {
namespace {

// Rows whose loads are under way at once, for each lane.
constexpr int kAhead = 4;

// What the 256 ids of one block came to, in the order of LookupCount.
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
  BlockCounts* block_counts;
  uint32_t* rows;  // ReadRows
};

struct GatherArgs {
  const float* rows;
  int64_t row_words;
  const int32_t* slots;
  int64_t n;
  RowShape shape;
  void* out;
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
  const bool searches = found.slot == 0;
  const int32_t slot = ProbeIndex(
      a.table.index, a.keys.MakeKey(found.id, found.table), searches, shared);
  if (searches) found.slot = slot;
  if (valid) a.out.slots[i] = found.slot;
  return found;
}

// What the lanes of a warp have found; every lane gets one word of it.
__device__ uint32_t CountFound(bool valid, int32_t slot, uint32_t checksum) {
  const uint32_t hits = __ballot_sync(kAllLanes, valid && slot >= 0);
  const uint32_t misses =
      __ballot_sync(kAllLanes, valid && slot == kSlotMissing);
  const uint32_t bad = __ballot_sync(kAllLanes, valid && slot == kSlotBadTable);
  const uint32_t sum = __reduce_add_sync(kAllLanes, checksum);
  switch (Lane()) {
    case kLookupHits:
      return static_cast<uint32_t>(__popc(hits));
    case kLookupMisses:
      return static_cast<uint32_t>(__popc(misses));
    case kLookupBadTables:
      return static_cast<uint32_t>(__popc(bad));
    default:
      return sum;
  }
}

// Finds the slots of ids, a thread an id.
__global__ __launch_bounds__(kBlockThreads) void FindKernel(
    const __grid_constant__ LookupArgs a) {
  __shared__ SearchShared search[kBlockWarps];
  __shared__ uint32_t counts[kBlockWarps][kNumLookupCounts];
  WaitForPrevious();
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t i = int64_t{blockIdx.x} * kBlockThreads + threadIdx.x;
  const bool valid = i < a.ids.size;
  const Found mine = FindOne(a, i, valid, &search[warp]);
  const uint32_t checksum =
      valid ? ChecksumAt(a.ids, i, mine.id, mine.table, mine.slot) : 0;
  const uint32_t word = CountFound(valid, mine.slot, checksum);
  if (Lane() < kNumLookupCounts) counts[warp][Lane()] = word;
  __syncthreads();
  if (threadIdx.x >= kNumLookupCounts) return;
  uint32_t sum = 0;
  for (int w = 0; w < kBlockWarps; ++w) sum += counts[w][threadIdx.x];
  a.block_counts[blockIdx.x].words[threadIdx.x] = sum;
}

// The activation of an id that has no row.
template <int kWidth>
__device__ Columns<kWidth> WithoutRow(const LookupArgs& a, const Found& found,
                                      int column) {
  float values[4] = {};
  if (found.slot == kSlotBadTable) {
    for (float& value : values) value = FloatFromBits(kFloatNaN);
  } else if (found.slot == kSlotMissing) {
    InitialColumns(a.initializers.View(), static_cast<uint16_t>(found.table),
                   found.id, static_cast<uint32_t>(column / 4), values);
  }
  Columns<kWidth> columns;
#pragma unroll
  for (int i = 0; i < kWidth; ++i) {
    columns.v[i] = kWidth == 4 ? values[i] : values[column % 4];
  }
  return columns;
}

// Adds up what the blocks have counted; for one block.
__device__ void AddBlockCounts(const LookupArgs& a, int64_t num_blocks) {
  __shared__ uint32_t totals[kNumLookupCounts];
  if (threadIdx.x < kNumLookupCounts) totals[threadIdx.x] = 0;
  __syncthreads();
  uint32_t sums[kNumLookupCounts] = {};
#pragma unroll 8
  for (int64_t b = threadIdx.x; b < num_blocks; b += kBlockThreads) {
    const BlockCounts counts = a.block_counts[b];
    for (int k = 0; k < kNumLookupCounts; ++k) sums[k] += counts.words[k];
  }
  for (int k = 0; k < kNumLookupCounts; ++k) {
    const uint32_t sum = __reduce_add_sync(kAllLanes, sums[k]);
    if (Lane() == 0) atomicAdd(totals + k, sum);
  }
  __syncthreads();
  if (threadIdx.x < kNumLookupCounts) {
    a.out.counts[threadIdx.x] = totals[threadIdx.x];
  }
  if (threadIdx.x == 0) *a.out.seen_version = *a.table.layout_version;
}

// Writes the activations of the ids that have no row, 256 ids a block as Find
// does; the first block adds up what Find has counted.
template <class Access, int kWidth>
__global__ __launch_bounds__(kBlockThreads) void FillKernel(
    const __grid_constant__ LookupArgs a) {
  using Out = Packed<Access, kWidth>;
  __shared__ uint32_t warp_sums[kBlockWarps];
  __shared__ uint8_t without[kBlockThreads];
  WaitForPrevious();
  if (blockIdx.x == 0) {
    AddBlockCounts(a, int64_t{gridDim.x} - 1);
    return;
  }
  const int64_t block = int64_t{blockIdx.x} - 1;
  const int64_t first = block * kBlockThreads;
  const int64_t left = a.ids.size - first;
  const int count =
      left < kBlockThreads ? static_cast<int>(left) : kBlockThreads;
  const uint32_t hits = a.block_counts[block].words[kLookupHits];
  if (hits == static_cast<uint32_t>(count)) return;
  const int thread = static_cast<int>(threadIdx.x);
  const bool is_without = thread < count && a.out.slots[first + thread] < 0;
  uint32_t total = 0;
  const uint32_t at = BlockExclusiveSum(is_without ? 1 : 0, warp_sums, &total);
  if (is_without) without[at] = static_cast<uint8_t>(thread);
  __syncthreads();
  auto* const out = static_cast<typename Access::Storage*>(a.out.activations);
  const int groups = kBlockThreads / a.shape.lanes;
  for (int k = thread / a.shape.lanes; k < static_cast<int>(total);
       k += groups) {
    const int64_t row = first + without[k];
    const Found found{a.ids.Id(row), a.ids.Table(row), a.out.slots[row]};
    for (int c = thread % a.shape.lanes * kWidth; c < a.shape.dim;
         c += a.shape.lanes * kWidth) {
      Out::Store(out + row * a.shape.dim + c,
                 Out::Pack(WithoutRow<kWidth>(a, found, c)));
    }
  }
}

// Copies rows to the output: as many lanes a row as it has column vectors, and
// kAhead rows under way at once for each lane.
template <class Access, int kWidth>
__global__ __launch_bounds__(kBlockThreads) void GatherKernel(
    const __grid_constant__ GatherArgs a) {
  using Out = Packed<Access, kWidth>;
  using Floats = PackedFloats<kWidth>;
  WaitForPrevious();
  const int at_once = kBlockThreads / a.shape.lanes;
  const int64_t first = int64_t{blockIdx.x} * at_once * kAhead +
                        static_cast<int>(threadIdx.x) / a.shape.lanes;
  int32_t slots[kAhead];
#pragma unroll
  for (int k = 0; k < kAhead; ++k) {
    const int64_t i = first + k * at_once;
    slots[k] = i < a.n ? a.slots[i] : kSlotPadding;
  }
  auto* const out = static_cast<typename Access::Storage*>(a.out);
  for (int c = static_cast<int>(threadIdx.x) % a.shape.lanes * kWidth;
       c < a.shape.dim; c += a.shape.lanes * kWidth) {
    typename Floats::Type words[kAhead];
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      if (slots[k] < 0) continue;
      words[k] = Floats::LoadConstant(a.rows + slots[k] * a.row_words + c);
    }
#pragma unroll
    for (int k = 0; k < kAhead; ++k) {
      if (slots[k] < 0) continue;
      Out::StoreOnce(out + (first + k * at_once) * a.shape.dim + c,
                     Out::Pack(Floats::Unpack(words[k])));
    }
  }
}

// One warp for 32 ids; no part of a step, so nothing is done to hurry it.
__global__ __launch_bounds__(kBlockThreads) void ReadRowsKernel(
    const __grid_constant__ LookupArgs a) {
  __shared__ SearchShared search[kBlockWarps];
  const int64_t i = int64_t{blockIdx.x} * kBlockThreads + threadIdx.x;
  const Found mine =
      FindOne(a, i, i < a.ids.size, &search[threadIdx.x / kWarp]);
  const int64_t first = i - Lane();
  const RowInitializers rows = a.initializers.View();
  for (int k = 0; k < kWarp && first + k < a.ids.size; ++k) {
    const uint64_t id = __shfl_sync(kAllLanes, mine.id, k);
    const int32_t table = __shfl_sync(kAllLanes, mine.table, k);
    const int32_t slot = __shfl_sync(kAllLanes, mine.slot, k);
    uint32_t* const out = a.rows + (first + k) * a.table.row_words;
    if (slot == kSlotMissing) {
      for (int64_t p = Lane(); p < CeilDiv(a.table.row_words, 4); p += kWarp) {
        WriteNewWords(rows, a.optimizer, a.shape.dim, a.table.row_words,
                      static_cast<uint16_t>(table), id,
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

int64_t FindBlocks(int64_t n) { return CeilDiv(n, kBlockThreads); }

template <class Access, int kWidth>
cudaError_t LaunchLookup(cudaStream_t stream, const LookupArgs& args) {
  const int64_t n = args.ids.size;
  const auto blocks = static_cast<unsigned>(FindBlocks(n));
  if (n > 0) {
    FindKernel<<<blocks, kBlockThreads, 0, stream>>>(args);
    ONEEMB_RETURN_IF_CUDA_ERROR(cudaGetLastError());
  }
  ONEEMB_RETURN_IF_CUDA_ERROR(
      LaunchNext(stream, FillKernel<Access, kWidth>, 1 + blocks, args));
  if (n == 0) return cudaSuccess;
  const GatherArgs gather{reinterpret_cast<const float*>(args.table.rows),
                          args.table.row_words,
                          args.out.slots,
                          n,
                          args.shape,
                          args.out.activations};
  const int64_t rows = kBlockThreads / args.shape.lanes * kAhead;
  return LaunchNext(stream, GatherKernel<Access, kWidth>, NumBlocks(n, rows),
                    gather);
}

}  // namespace

int64_t LookupSpace(const TableRules& rules, int64_t n) {
  Workspace workspace;
  workspace.Take<BlockCounts>(FindBlocks(n));
  MeasureInitializerArgs(rules.initializers.num_columns, rules.keys.num_tables,
                         &workspace);
  return workspace.used();
}

cudaError_t Lookup(cudaStream_t stream, const TableView& table,
                   const TableRules& rules, const IdsView& ids,
                   const LookupOutput& out, void* workspace_base) {
  LookupArgs args = MakeArgs(table, rules, ids);
  args.out = out;
  Workspace workspace(workspace_base);
  args.block_counts = workspace.Take<BlockCounts>(FindBlocks(ids.size));
  ONEEMB_RETURN_IF_CUDA_ERROR(
      MakeInitializerArgs(stream, rules.initializers, rules.keys.num_tables,
                          &workspace, &args.initializers));
  cudaError_t error = cudaSuccess;
  DispatchFloat(out.type, [&](auto access) {
    using Access = decltype(access);
    error = RowWidth(args.shape.dim) == 4
                ? LaunchLookup<Access, 4>(stream, args)
                : LaunchLookup<Access, 1>(stream, args);
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
