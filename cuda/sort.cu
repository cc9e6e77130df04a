#include "cuda/chain.cuh"
#include "cuda/sort.h"
#include "cuda/warp.cuh"

namespace oneemb::gpu {
namespace {

constexpr int kDigits = 1 << SortPlan::kMaxDigitBits;
static_assert(kDigits == kBlockThreads, "a thread looks after one digit");

struct PassArgs {
  const uint32_t* keys;         // the first pass reads keys
  const SlotPosition* entries;  // the others entries
  SlotPosition* out;
  int64_t n;
  TileCounts counts;
  const uint32_t* active;
};

struct PassShared {
  // Per warp: how often a digit came so far; later, where the warp's entries
  // of that digit begin in the tile.
  uint32_t warp_digits[kBlockWarps][kDigits];
  uint32_t tile_begin[kDigits];  // where a digit begins in the tile
  uint32_t out_begin[kDigits];   // and in the output
  uint32_t warp_sums[kBlockWarps];
};

// The lanes whose digit is the same, among `valid` ones.
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

// Where digit `d` of this tile begins in the output, less what lower digits
// take: its occurrences in the tiles before. *total: in all tiles.
__device__ uint32_t CountBefore(const TileCounts& counts, int64_t num_groups,
                                int64_t tile, int d, uint32_t* total) {
  const int64_t group = tile / counts.group_tiles;
  uint32_t before = 0;
  uint32_t all = 0;
#pragma unroll 8
  for (int64_t g = 0; g < num_groups; ++g) {
    const uint32_t count = counts.OfGroup(g)[d];
    before += g < group ? count : 0;
    all += count;
  }
#pragma unroll 8
  for (int64_t t = group * counts.group_tiles; t < tile; ++t) {
    before += counts.OfTile(t)[d];
  }
  *total = all;
  return before;
}

// Counts the digits of a tile for its pass. The first pass finds them counted.
__global__ __launch_bounds__(kBlockThreads) void CountKernel(
    const SlotPosition* entries, int64_t n, int tile_bits, TileCounts counts,
    const uint32_t* active) {
  __shared__ uint32_t tile_counts[kDigits];
  WaitForPrevious();
  if (*active == 0) return;
  const int64_t tile = blockIdx.x;
  tile_counts[threadIdx.x] = 0;
  __syncthreads();
  const int64_t begin = tile << tile_bits;
#pragma unroll 4
  for (int j = threadIdx.x; j < 1 << tile_bits; j += kBlockThreads) {
    if (begin + j >= n) break;
    const uint32_t key = static_cast<uint32_t>(entries[begin + j] >> 32);
    atomicAdd(tile_counts + counts.Digit(key), 1U);
  }
  __syncthreads();
  const uint32_t digit = threadIdx.x;
  if (digit >= 1U << counts.digit_bits) return;
  counts.OfTile(tile)[digit] = tile_counts[digit];
  atomicAdd(counts.OfGroup(tile / counts.group_tiles) + digit,
            tile_counts[digit]);
}

template <int kItems>
__global__ __launch_bounds__(kBlockThreads) void PassKernel(
    const __grid_constant__ PassArgs a) {
  constexpr int kTile = kItems * kBlockThreads;
  __shared__ PassShared shared;
  __shared__ SlotPosition staged[kTile];
  WaitForPrevious();
  if (*a.active == 0) return;
  const int warp = threadIdx.x / kWarp;
  const int lane = threadIdx.x % kWarp;
  const int digits = 1 << a.counts.digit_bits;
  const int64_t tile = blockIdx.x;
  const int64_t warp_begin =
      tile * kTile + int64_t{warp} * kItems * kWarp + lane;
  for (int d = lane; d < digits; d += kWarp) shared.warp_digits[warp][d] = 0;

  SlotPosition entries[kItems];
  uint32_t ranks[kItems];
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    const int64_t i = warp_begin + k * kWarp;
    entries[k] = 0;
    if (i >= a.n) continue;
    entries[k] = a.keys == nullptr ? a.entries[i]
                                   : (SlotPosition{a.keys[i]} << 32) |
                                         static_cast<uint32_t>(i);
  }
  __syncwarp();
#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    const bool valid = warp_begin + k * kWarp < a.n;
    const uint32_t digit =
        a.counts.Digit(static_cast<uint32_t>(entries[k] >> 32));
    const uint32_t same = SameDigit(digit, __ballot_sync(kAllLanes, valid));
    const uint32_t seen = valid ? shared.warp_digits[warp][digit] : 0;
    ranks[k] = seen + __popc(same & LowerLanes());
    __syncwarp();
    if (valid && (same & LowerLanes()) == 0) {
      shared.warp_digits[warp][digit] = seen + __popc(same);
    }
    __syncwarp();
  }
  __syncthreads();

  const int d = threadIdx.x;
  uint32_t in_tile = 0;
  uint32_t total = 0;
  uint32_t before = 0;
  if (d < digits) {
    for (int w = 0; w < kBlockWarps; ++w) {
      const uint32_t count = shared.warp_digits[w][d];
      shared.warp_digits[w][d] = in_tile;
      in_tile += count;
    }
    const int64_t groups = CeilDiv(a.counts.num_tiles, a.counts.group_tiles);
    before = CountBefore(a.counts, groups, tile, d, &total);
  }
  uint32_t all = 0;
  const uint32_t tile_begin =
      BlockExclusiveSum(in_tile, shared.warp_sums, &all);
  const uint32_t digit_begin = BlockExclusiveSum(total, shared.warp_sums, &all);
  if (d < digits) {
    shared.tile_begin[d] = tile_begin;
    shared.out_begin[d] = digit_begin + before - tile_begin;
  }
  __syncthreads();

#pragma unroll
  for (int k = 0; k < kItems; ++k) {
    if (warp_begin + k * kWarp >= a.n) continue;
    const uint32_t digit =
        a.counts.Digit(static_cast<uint32_t>(entries[k] >> 32));
    staged[shared.tile_begin[digit] + shared.warp_digits[warp][digit] +
           ranks[k]] = entries[k];
  }
  __syncthreads();
  const int64_t left = a.n - tile * kTile;
  const int count = left < kTile ? static_cast<int>(left) : kTile;
  for (int j = threadIdx.x; j < count; j += kBlockThreads) {
    const SlotPosition entry = staged[j];
    const uint32_t digit = a.counts.Digit(static_cast<uint32_t>(entry >> 32));
    a.out[shared.out_begin[digit] + j] = entry;
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
  // Small tiles keep every multiprocessor busy, large ones write longer runs.
  plan.tile_bits = n <= (1 << 17) ? 9 : (n <= (1 << 19) ? 11 : 12);
  plan.num_tiles = CeilDiv(n, int64_t{1} << plan.tile_bits);
  plan.group_tiles = 1;
  while (plan.group_tiles * plan.group_tiles < plan.num_tiles) {
    plan.group_tiles *= 2;
  }
  plan.num_groups = CeilDiv(plan.num_tiles, plan.group_tiles);
  return plan;
}

cudaError_t Sort(cudaStream_t stream, const SortPlan& plan,
                 const uint32_t* keys, const uint32_t* active,
                 const SlotPosition** sorted) {
  *sorted = plan.entries[0];
  if (plan.n == 0) return cudaSuccess;
  for (int pass = 0; pass < plan.passes; ++pass) {
    PassArgs args{};
    args.keys = pass == 0 ? keys : nullptr;
    args.entries = plan.entries[(pass + 1) % 2];
    args.out = plan.entries[pass % 2];
    args.n = plan.n;
    args.counts = CountsOfPass(plan, pass);
    args.active = active;
    const unsigned blocks = static_cast<unsigned>(plan.num_tiles);
    if (pass > 0) {
      ONEEMB_RETURN_IF_CUDA_ERROR(
          LaunchNext(stream, CountKernel, blocks, args.entries, plan.n,
                     plan.tile_bits, args.counts, active));
    }
    const auto kernel = plan.tile_bits == 9    ? PassKernel<2>
                        : plan.tile_bits == 11 ? PassKernel<8>
                                               : PassKernel<16>;
    ONEEMB_RETURN_IF_CUDA_ERROR(LaunchNext(stream, kernel, blocks, args));
    *sorted = args.out;
  }
  return cudaSuccess;
}

}  // namespace oneemb::gpu
