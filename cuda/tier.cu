#include <algorithm>
#include <array>
#include <random>

#include "core/counters.h"
#include "cuda/index.cuh"
#include "cuda/key_copy.cuh"
#include "cuda/tier.h"
#include "cuda/warp.cuh"

namespace oneemb::gpu {
namespace {

// The number of this thread in its launch.
__device__ int64_t ThreadNumber() {
  return int64_t{blockIdx.x} * kBlockThreads + threadIdx.x;
}

__global__ __launch_bounds__(kBlockThreads) void CopyFoundKernel(
    const PlaceState* from, const NewKey* new_keys, PlaceState* state,
    Key* keys) {
  const int64_t i = ThreadNumber();
  if (i == 0 && state != nullptr) *state = *from;
  if (keys == nullptr || i >= static_cast<int64_t>(from->num_new)) return;
  StoreKey(keys + i, {new_keys[i].id, new_keys[i].table});
}

// Whether the thread's slot had an older clock than `now`, which it gets.
// Several positions may have one slot: who sees the old clock counts it.
__device__ bool Touch(const PlaceArgs& a, uint32_t now) {
  const int64_t i = ThreadNumber();
  const int32_t slot = i < a.batch.size ? a.codes[i] : kSlotMissing;
  if (slot < 0 || slot >= a.table.capacity) return false;
  uint32_t* const clock = a.table.clock + slot;
  return IsBefore(*static_cast<volatile uint32_t*>(clock), now) &&
         atomicExch(clock, now) != now;
}

__global__ __launch_bounds__(kBlockThreads) void TouchAheadKernel(
    const __grid_constant__ PlaceArgs a) {
  Touch(a, AnnouncedClock(a.table.counters[kStaged]));
}

// The block that ends last knows the sum.
__global__ __launch_bounds__(kBlockThreads) void TouchKernel(
    const __grid_constant__ PlaceArgs a, uint32_t now, uint32_t* resident) {
  const uint32_t count = __ballot_sync(kAllLanes, Touch(a, now));
  if (Lane() == 0 && count != 0) {
    atomicAdd(&a.state->resident, static_cast<uint32_t>(__popc(count)));
  }
  __threadfence();
  __syncthreads();
  if (threadIdx.x != 0) return;
  if (atomicAdd(&a.state->touched, 1U) + 1 < gridDim.x) return;
  *resident = atomicAdd(&a.state->resident, 0U);
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

__global__ __launch_bounds__(kBlockThreads) void PutRowsKernel(
    const uint32_t* const* rows, const int32_t* to, int64_t count,
    int64_t row_words, uint32_t* array) {
  const int64_t i = ThreadNumber() / kWarp;
  if (i >= count || rows[i] == nullptr) return;
  CopyRow(rows[i], row_words, array + to[i] * row_words);
}

// EvictSlot of cpu/tier.h. Others evict beside it: of what they share, counts
// are taken down by atomics, and an entry's bytes are its own.
__global__ __launch_bounds__(kBlockThreads) void EvictKernel(
    TableView table, const CollectSpace victims) {
  const int64_t i = ThreadNumber();
  uint64_t version = 0;
  if (i < victims.counts->all) {
    const SlotDescription victim = victims.slots[i];
    SlotResidency* const residency = table.residency + victim.slot;
    const int64_t entry = residency->entry;
    const uint64_t hash = HashKey({victim.id, victim.table});
    version = 0 - LayoutTerm(hash, victim.slot);
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

// The slot of an admission, or kSlotMissing.
__device__ int32_t SlotOf(const SlotExchange& e, int64_t i) {
  const int64_t num_victims = e.victims.counts->all;
  if (i < num_victims) return e.victims.slots[i].slot;
  if (i >= e.count || i - num_victims >= e.num_unused) return kSlotMissing;
  return static_cast<int32_t>(e.first_unused + i - num_victims);
}

__device__ Key KeyOf(const SlotExchange& e, int64_t i) {
  if (e.found_keys == nullptr) return LoadKey(e.keys + i);
  return {e.found_keys[i].id, e.found_keys[i].table};
}

__global__ __launch_bounds__(kBlockThreads) void AdmitCompeteKernel(
    TableView table, const __grid_constant__ SlotExchange e) {
  const int64_t i = ThreadNumber();
  uint64_t version = 0;
  const int32_t slot = SlotOf(e, i);
  if (i < e.count) {
    const Key key = KeyOf(e, i);
    e.admissions[i] = {key, e.rows[i], slot};
    if (slot >= 0) {
      const uint64_t hash = HashKey(key);
      CompeteForEntry(table.index, hash, slot);
      version = LayoutTerm(hash, slot);
    }
  }
  version = WarpSum64(version);
  if (Lane() == 0) AtomicAdd64(table.layout_version, version);
}

__global__ __launch_bounds__(kBlockThreads) void AdmitFinishKernel(
    TableView table, const SlotAdmission* admissions, int64_t count,
    uint32_t now) {
  const int64_t i = ThreadNumber();
  if (i >= count || admissions[i].slot < 0) return;
  const SlotAdmission a = admissions[i];
  const int64_t entry = FinishEntry(table.index, a.key, HashKey(a.key), a.slot);
  table.residency[a.slot] = {static_cast<uint32_t>(entry),
                             a.row == nullptr ? kSlotReserved : kSlotClean};
  table.clock[a.slot] = now;
}

// A warp a slot: what it had goes out, if that is dirty, and what it gets comes
// in, or zeros until there is a row. Both are under way at once, as the bus has
// two directions.
template <class Word>
__device__ void ExchangeRow(const Word* in, int64_t words, Word* row,
                            Word* out) {
  for (int64_t w = Lane(); w < words; w += kWarp) {
    Word coming{};
    if (in != nullptr) coming = in[w];
    if (out != nullptr) out[w] = row[w];
    row[w] = coming;
  }
}

__global__ __launch_bounds__(kBlockThreads) void ExchangeRowsKernel(
    TableView table, const __grid_constant__ SlotExchange e) {
  const int64_t i = ThreadNumber() / kWarp;
  if (i >= e.count || e.admissions[i].slot < 0) return;
  const SlotAdmission a = e.admissions[i];
  const int64_t words = table.row_words;
  uint32_t* const row = table.Row(a.slot);
  uint32_t* out = nullptr;
  if (e.dirty_rows != nullptr && i < e.victims.counts->all) {
    const int64_t rank = e.victims.dirty_ranks[i];
    if (rank >= 0) out = e.dirty_rows + rank * words;
  }
  if (words % 4 == 0) {
    ExchangeRow(reinterpret_cast<const uint4*>(a.row), words / 4,
                reinterpret_cast<uint4*>(row), reinterpret_cast<uint4*>(out));
  } else {
    ExchangeRow(a.row, words, row, out);
  }
}

__global__ __launch_bounds__(kBlockThreads) void MarkCleanKernel(
    SlotResidency* residency, int64_t capacity, const bool* flushed,
    const uint32_t* generation, uint32_t* next) {
  const int64_t slot = ThreadNumber();
  if (slot == 0) *next = *generation + (*flushed ? 1 : 0);
  if (slot >= capacity || !*flushed) return;
  if (residency[slot].state == kSlotDirty) residency[slot].state = kSlotClean;
}

// Of this process: nobody outside can make lists that have one fingerprint.
void GetFingerprintSeeds(uint64_t* seeds) {
  static const auto drawn = [] {
    std::random_device random;
    const auto draw = [&] { return uint64_t{random()} << 32 | random(); };
    return std::array<uint64_t, 2>{draw(), draw()};
  }();
  std::copy(drawn.begin(), drawn.end(), seeds);
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
                        void* workspace_base, PlaceArgs* place) {
  Workspace workspace(workspace_base);
  TakePlaceZeros(ids.size, table.capacity, rules.keys.shared_keys, &workspace,
                 place);
  const Zeros zeros{workspace_base, workspace.used()};
  TakePlaceRest(ids.size, &workspace, place);
  place->mode = PlaceMode::kStage;
  GetFingerprintSeeds(place->seeds);
  place->table = table;
  place->keys = rules.keys;
  UpdateBatch batch{};
  batch.ids = ids;
  ONEEMB_RETURN_IF_CUDA_ERROR(
      MakeFlatBatch(stream, {batch}, &workspace, &place->batch));
  ONEEMB_RETURN_IF_CUDA_ERROR(PlaceFind(stream, *place, zeros));
  return PlaceNumber(stream, *place);
}

cudaError_t CopyFound(cudaStream_t stream, const PlaceArgs& place,
                      PlaceState* state, Key* keys) {
  const int64_t items = keys == nullptr ? 1 : place.batch.size;
  CopyFoundKernel<<<NumBlocks(items, kBlockThreads), kBlockThreads, 0,
                    stream>>>(place.state, place.new_keys, state, keys);
  return cudaGetLastError();
}

cudaError_t TouchFound(cudaStream_t stream, const PlaceArgs& place,
                       uint32_t now, uint32_t* resident) {
  TouchKernel<<<NumBlocks(place.batch.size, kBlockThreads), kBlockThreads, 0,
                stream>>>(place, now, resident);
  return cudaGetLastError();
}

cudaError_t TouchFoundAhead(cudaStream_t stream, const PlaceArgs& place) {
  TouchAheadKernel<<<NumBlocks(place.batch.size, kBlockThreads), kBlockThreads,
                     0, stream>>>(place);
  return cudaGetLastError();
}

cudaError_t CopyRowsOut(cudaStream_t stream, const TableView& table,
                        const int32_t* slots, int64_t count, uint32_t* rows) {
  CopyRowsOutKernel<<<NumBlocks(count, kBlockWarps), kBlockThreads, 0,
                      stream>>>(table, slots, count, rows);
  return cudaGetLastError();
}

cudaError_t PutRows(cudaStream_t stream, const uint32_t* const* rows,
                    const int32_t* to, int64_t count, int64_t row_words,
                    uint32_t* array) {
  PutRowsKernel<<<NumBlocks(count, kBlockWarps), kBlockThreads, 0, stream>>>(
      rows, to, count, row_words, array);
  return cudaGetLastError();
}

cudaError_t ExchangeSlots(cudaStream_t stream, const TableView& table,
                          const SlotExchange& exchange) {
  const int64_t count = exchange.count;
  const unsigned blocks = NumBlocks(count, kBlockThreads);
  // No fewer keys are admitted than there are victims.
  EvictKernel<<<blocks, kBlockThreads, 0, stream>>>(table, exchange.victims);
  ONEEMB_RETURN_IF_CUDA_ERROR(cudaGetLastError());
  AdmitCompeteKernel<<<blocks, kBlockThreads, 0, stream>>>(table, exchange);
  ONEEMB_RETURN_IF_CUDA_ERROR(cudaGetLastError());
  AdmitFinishKernel<<<blocks, kBlockThreads, 0, stream>>>(
      table, exchange.admissions, count, exchange.now);
  ONEEMB_RETURN_IF_CUDA_ERROR(cudaGetLastError());
  ExchangeRowsKernel<<<NumBlocks(count, kBlockWarps), kBlockThreads, 0,
                       stream>>>(table, exchange);
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
