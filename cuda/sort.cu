#include "cuda/chain.cuh"
#include "cuda/sort.h"
#include "cuda/tile_sums.cuh"
#include "cuda/warp.cuh"

namespace oneemb::gpu {
namespace {

constexpr int kDigits = SortPlan::kMaxDigits;
static_assert(kDigits == kBlockThreads, "a thread looks after one digit");

struct PassArgs {
  const uint32_t* keys;         // the first pass reads keys
  const SlotPosition* entries;  // the others entries
  SlotPosition* out;
  uint32_t n;
  int digit_bits;
  int shift;
  const uint32_t* totals;  // copies of [digits], `num_totals` apart
  int64_t num_totals;
  uint32_t* ticket;
  uint64_t* tiles;   // [num_tiles, digits]
  uint64_t* groups;  // [num_groups, digits]
  int group_bits;
  const uint32_t* active;

  __device__ uint32_t Digit(SlotPosition entry) const {
    const uint32_t key = static_cast<uint32_t>(entry >> 32);
    return (key >> shift) & ((1U << digit_bits) - 1);
  }
};

struct PassShared {
  uint32_t tile;
  // Per warp: how often it has a digit; later, where its next entry of that
  // digit goes in the tile, less where the digit begins.
  uint32_t warp_digits[kBlockWarps][kDigits];
  uint32_t tile_begin[kDigits];  // where a digit begins in the tile
  uint32_t out_begin[kDigits];   // and in the output, less that
  uint32_t warp_sums[kBlockWarps];
};

// The lanes whose digit is the same, among `valid` ones. All bits of a digit
// are looked at, also those that digits do not have here.
__device__ uint32_t SameDigit(uint32_t digit, uint32_t valid) {
  uint32_t same = valid;
#pragma unroll
  for (int b = 0; b < SortPlan::kMaxDigitBits; ++b) {
    const bool set = ((digit >> b) & 1) != 0;
    const uint32_t with_bit = __ballot_sync(kAllLanes, set);
    same &= set ? with_bit : ~with_bit;
  }
  return same;
}

// Tells other tiles how often digit `d` occurs in this one.
__device__ void TellCount(const PassArgs& a, uint32_t tile, int d,
                          uint32_t count) {
  const uint32_t group = tile >> a.group_bits;
  TellTile(a.tiles + (uint64_t{tile} << a.digit_bits) + d,
           a.groups + (uint64_t{group} << a.digit_bits) + d, count);
}

// How often digit `d` occurs in the tiles before this one.
__device__ uint32_t CountBefore(const PassArgs& a, uint32_t tile, int d) {
  const int digits = 1 << a.digit_bits;
  const uint32_t group = tile >> a.group_bits;
  const uint32_t first = group << a.group_bits;
  return AwaitSums(a.groups + d, digits, static_cast<int>(group),
                   1U << a.group_bits) +
         AwaitSums(a.tiles + (uint64_t{first} << a.digit_bits) + d, digits,
                   static_cast<int>(tile - first), 1);
}

// How often digit `d` occurs at all.
__device__ uint32_t CountAll(const PassArgs& a, int d) {
  uint32_t sum = 0;
#pragma unroll
  for (int copy = 0; copy < SortPlan::kCopies; ++copy) {
    sum += a.totals[copy * a.num_totals + d];
  }
  return sum;
}

// Loads a warp's entries, from `begin` on for this lane. Returns how many there
// are in this lane.
template <int kItems>
__device__ int LoadEntries(const PassArgs& a, uint32_t begin,
                           SlotPosition (&entries)[kItems]) {
  int valid = 0;
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    const uint32_t i = begin + k * kWarp;
    entries[k] = 0;
    if (i >= a.n) continue;
    entries[k] =
        a.keys == nullptr ? a.entries[i] : (SlotPosition{a.keys[i]} << 32) | i;
    valid = k + 1;
  }
  return valid;
}

// Counts the digits of a warp's entries.
template <int kItems>
__device__ void CountDigits(const PassArgs& a,
                            const SlotPosition (&entries)[kItems], int valid,
                            uint32_t* digits) {
  for (int d = Lane(); d < 1 << a.digit_bits; d += kWarp) digits[d] = 0;
  __syncwarp();
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    if (k < valid) atomicAdd(digits + a.Digit(entries[k]), 1U);
  }
}

// Puts a warp's entries in order into `staged`, each digit from where it begins
// in the tile.
template <int kItems>
__device__ void StageEntries(const PassArgs& a,
                             const SlotPosition (&entries)[kItems], int valid,
                             uint32_t* digits, const uint32_t* tile_begin,
                             SlotPosition* staged) {
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    const uint32_t digit = a.Digit(entries[k]);
    const uint32_t same = SameDigit(digit, __ballot_sync(kAllLanes, k < valid));
    const uint32_t before = __popc(same & LowerLanes());
    const uint32_t next = k < valid ? digits[digit] : 0;
    __syncwarp();
    if (k < valid && before == 0) digits[digit] = next + __popc(same);
    __syncwarp();
    if (k < valid) staged[tile_begin[digit] + next + before] = entries[k];
  }
}

// Counts the digits of a tile first, so that the others hear of them while it
// puts its entries in order.
template <int kItems>
__global__ __launch_bounds__(kBlockThreads) void PassKernel(
    const __grid_constant__ PassArgs a) {
  constexpr int kTile = kItems * kBlockThreads;
  __shared__ PassShared shared;
  __shared__ SlotPosition staged[kTile];
  // Tiles are taken in order, so that those before this one are under way. No
  // kernel before this one has to do with its ticket.
  if (threadIdx.x == 0) shared.tile = atomicAdd(a.ticket, 1U);
  // No LetNextBegin: a pass takes longer where the next one's blocks are set up
  // beside it (docs/cuda.md).
  AwaitPrevious();
  if (*a.active == 0) return;
  const int d = static_cast<int>(threadIdx.x);
  const int warp = d / kWarp;
  const bool has_digit = d < 1 << a.digit_bits;
  const uint32_t in_all = has_digit ? CountAll(a, d) : 0;
  __syncthreads();
  const uint32_t tile = shared.tile;
  const uint32_t begin = tile * kTile + warp * kItems * kWarp + Lane();
  SlotPosition entries[kItems];
  const int valid = LoadEntries(a, begin, entries);
  CountDigits(a, entries, valid, shared.warp_digits[warp]);
  __syncthreads();

  uint32_t in_tile = 0;
  if (has_digit) {
    for (int w = 0; w < kBlockWarps; ++w) {
      const uint32_t count = shared.warp_digits[w][d];
      shared.warp_digits[w][d] = in_tile;
      in_tile += count;
    }
    TellCount(a, tile, d, in_tile);
  }
  uint32_t all = 0;
  const uint32_t tile_begin =
      BlockExclusiveSum(in_tile, shared.warp_sums, &all);
  const uint32_t digit_begin =
      BlockExclusiveSum(in_all, shared.warp_sums, &all);
  shared.tile_begin[d] = tile_begin;
  __syncthreads();
  StageEntries(a, entries, valid, shared.warp_digits[warp], shared.tile_begin,
               staged);
  if (has_digit) {
    shared.out_begin[d] = digit_begin + CountBefore(a, tile, d) - tile_begin;
  }
  __syncthreads();
  const uint32_t left = a.n - tile * kTile;
  const int count = left < kTile ? static_cast<int>(left) : kTile;
  for (int j = d; j < count; j += kBlockThreads) {
    const SlotPosition entry = staged[j];
    a.out[shared.out_begin[a.Digit(entry)] + j] = entry;
  }
}

}  // namespace

SortPlan PlanSort(int64_t n, int64_t num_keys) {
  SortPlan plan{};
  plan.n = n;
  int bits = 1;
  while ((int64_t{1} << bits) <= num_keys) ++bits;
  plan.sentinel = static_cast<uint32_t>((int64_t{1} << bits) - 1);
  plan.passes = static_cast<int>(CeilDiv(bits, SortPlan::kMaxDigitBits));
  plan.digit_bits = static_cast<int>(CeilDiv(bits, plan.passes));
  // Small tiles keep every multiprocessor busy; of large ones there are fewer
  // to hear of, and they write longer runs.
  constexpr int64_t kManyKeys = int64_t{1} << 19;
  plan.tile_bits = IsSmallBatch(n) ? 9 : (n <= kManyKeys ? 11 : 12);
  plan.num_tiles = CeilDiv(n, int64_t{1} << plan.tile_bits);
  plan.num_groups = NumGroups(plan.num_tiles);
  return plan;
}

void TakeSortZeros(Workspace* workspace, SortPlan* plan) {
  plan->totals =
      workspace->Take<uint32_t>(SortPlan::kCopies * plan->num_totals());
  plan->tickets = workspace->Take<uint32_t>(plan->passes);
  plan->counts = workspace->Take<uint64_t>(plan->passes * plan->pass_counts());
}

cudaError_t Sort(cudaStream_t stream, const SortPlan& plan,
                 const uint32_t* keys, const uint32_t* active,
                 const SlotPosition** sorted) {
  *sorted = plan.entries[0];
  if (plan.n == 0) return cudaSuccess;
  const auto kernel = plan.tile_bits == 9    ? PassKernel<2>
                      : plan.tile_bits == 11 ? PassKernel<8>
                                             : PassKernel<16>;
  for (int pass = 0; pass < plan.passes; ++pass) {
    PassArgs args{};
    args.keys = pass == 0 ? keys : nullptr;
    args.entries = plan.entries[(pass + 1) % 2];
    args.out = plan.entries[pass % 2];
    args.n = static_cast<uint32_t>(plan.n);
    args.digit_bits = plan.digit_bits;
    args.shift = pass * plan.digit_bits;
    args.totals = plan.totals + (pass << plan.digit_bits);
    args.ticket = plan.tickets + pass;
    args.num_totals = plan.num_totals();
    args.tiles = plan.counts + pass * plan.pass_counts();
    args.groups = args.tiles + (plan.num_tiles << plan.digit_bits);
    args.group_bits = GroupBits(plan.num_tiles);
    args.active = active;
    ONEEMB_RETURN_IF_CUDA_ERROR(LaunchNext(
        stream, kernel, static_cast<unsigned>(plan.num_tiles), args));
    *sorted = args.out;
  }
  return cudaSuccess;
}

}  // namespace oneemb::gpu
