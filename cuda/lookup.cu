#include "core/counters.h"
#include "cuda/arguments.h"
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

struct LookupArgs {
  TableView table;
  KeyRules keys;
  IdsView ids;
  InitializerArgs initializers;
  OptimizerConfig optimizer;  // ReadRows
  RowShape shape;
  LookupOutput out;
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
__device__ Found FindOne(const LookupArgs& a, int64_t i, SearchShared* shared) {
  Found found{0, 0, kSlotPadding};
  if (i < a.ids.size) {
    found.id = a.ids.Id(i);
    found.table = a.ids.Table(i);
    found.slot = a.keys.Reject(found.id, found.table);
  }
  const bool searches = found.slot == 0;
  const int32_t slot = ProbeIndex(
      a.table.index, a.keys.MakeKey(found.id, found.table), searches, shared);
  if (searches) found.slot = slot;
  if (i < a.ids.size) a.out.slots[i] = found.slot;
  return found;
}

// Adds what the threads of a block have found to the counts.
__device__ void CountFound(const LookupArgs& a, int64_t i, int32_t slot) {
  const bool counts = i < a.ids.size;
  const int hits = __syncthreads_count(counts && slot >= 0 ? 1 : 0);
  const int misses =
      __syncthreads_count(counts && slot == kSlotMissing ? 1 : 0);
  const int bad = __syncthreads_count(counts && slot == kSlotBadTable ? 1 : 0);
  if (threadIdx.x != 0) return;
  if (hits > 0) atomicAdd(a.out.counts + kLookupHits, hits);
  if (misses > 0) atomicAdd(a.out.counts + kLookupMisses, misses);
  if (bad > 0) atomicAdd(a.out.counts + kLookupBadTables, bad);
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

__global__ __launch_bounds__(kBlockThreads) void FindKernel(
    const __grid_constant__ LookupArgs a) {
  __shared__ SearchShared search[kBlockWarps];
  __shared__ uint32_t warp_sums[kBlockWarps];
  const int64_t i = int64_t{blockIdx.x} * kBlockThreads + threadIdx.x;
  if (i == 0) *a.out.seen_version = *a.table.layout_version;
  const Found mine = FindOne(a, i, &search[threadIdx.x / kWarp]);
  CountFound(a, i, mine.slot);
  const uint32_t term =
      i < a.ids.size ? ChecksumAt(a.ids, i, mine.id, mine.table, mine.slot) : 0;
  AddBlockSum(term, warp_sums, a.out.counts + kLookupChecksum);
}

// Writes the activations of the ids that have no row; a warp has 32 ids.
template <class Access, int kWidth>
__global__ __launch_bounds__(kBlockThreads) void FillKernel(
    const __grid_constant__ LookupArgs a) {
  using Out = Packed<Access, kWidth>;
  __shared__ uint8_t without[kBlockWarps][kWarp];
  const int64_t i = int64_t{blockIdx.x} * kBlockThreads + threadIdx.x;
  const int32_t slot = i < a.ids.size ? a.out.slots[i] : 0;
  const uint32_t mask = __ballot_sync(kAllLanes, slot < 0);
  if (mask == 0) return;
  uint8_t* const list = without[threadIdx.x / kWarp];
  if (slot < 0)
    list[__popc(mask & LowerLanes())] = static_cast<uint8_t>(Lane());
  __syncwarp();
  const int groups = kWarp / a.shape.lanes;
  auto* const out = static_cast<typename Access::Storage*>(a.out.activations);
  for (int k = Lane() / a.shape.lanes; k < __popc(mask); k += groups) {
    const int64_t row = i - Lane() + list[k];
    const Found found{a.ids.Id(row), a.ids.Table(row), a.out.slots[row]};
    for (int c = Lane() % a.shape.lanes * kWidth; c < a.shape.dim;
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
      Out::Store(out + (first + k * at_once) * a.shape.dim + c,
                 Out::Pack(Floats::Unpack(words[k])));
    }
  }
}

// One warp for 32 ids; no part of a step, so nothing is done to hurry it.
__global__ __launch_bounds__(kBlockThreads) void ReadRowsKernel(
    const __grid_constant__ LookupArgs a) {
  __shared__ SearchShared search[kBlockWarps];
  const int64_t i = int64_t{blockIdx.x} * kBlockThreads + threadIdx.x;
  const Found mine = FindOne(a, i, &search[threadIdx.x / kWarp]);
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

template <class Access, int kWidth>
void LaunchLookup(cudaStream_t stream, const LookupArgs& args) {
  const int64_t n = args.ids.size;
  const unsigned blocks = NumBlocks(n, kBlockThreads);
  FindKernel<<<blocks, kBlockThreads, 0, stream>>>(args);
  if (n == 0) return;
  FillKernel<Access, kWidth><<<blocks, kBlockThreads, 0, stream>>>(args);
  const GatherArgs gather{reinterpret_cast<const float*>(args.table.rows),
                          args.table.row_words,
                          args.out.slots,
                          n,
                          args.shape,
                          args.out.activations};
  const int64_t rows = kBlockThreads / args.shape.lanes * kAhead;
  GatherKernel<Access, kWidth>
      <<<NumBlocks(n, rows), kBlockThreads, 0, stream>>>(gather);
}

}  // namespace

int64_t LookupSpace(const TableRules& rules) {
  Workspace workspace;
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
  ONEEMB_RETURN_IF_CUDA_ERROR(
      MakeInitializerArgs(stream, rules.initializers, rules.keys.num_tables,
                          &workspace, &args.initializers));
  ONEEMB_RETURN_IF_CUDA_ERROR(cudaMemsetAsync(
      out.counts, 0, kNumLookupCounts * sizeof(uint32_t), stream));
  DispatchFloat(out.type, [&](auto access) {
    using Access = decltype(access);
    if (RowWidth(args.shape.dim) == 4) {
      LaunchLookup<Access, 4>(stream, args);
    } else {
      LaunchLookup<Access, 1>(stream, args);
    }
  });
  return cudaGetLastError();
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
