// Sums over the threads of a warp and a block.
#pragma once

#include <cstdint>

#include "cuda/launch.h"

namespace oneemb::gpu {

constexpr unsigned kAllLanes = 0xffffffffU;

__device__ __forceinline__ int Lane() {
  return static_cast<int>(threadIdx.x % kWarp);
}

__device__ __forceinline__ uint32_t LowerLanes() { return (1U << Lane()) - 1; }

__device__ __forceinline__ void AtomicAdd64(uint64_t* to, uint64_t value) {
  atomicAdd(reinterpret_cast<unsigned long long*>(to),
            static_cast<unsigned long long>(value));
}

// The sum over the lanes, in every lane.
__device__ __forceinline__ uint64_t WarpSum64(uint64_t value) {
  for (int d = kWarp / 2; d > 0; d /= 2) {
    value += __shfl_xor_sync(kAllLanes, value, d);
  }
  return value;
}

// Adds the sum over the threads of a block, modulo 2^32, to *to. `warp_sums` is
// shared room for one number a warp.
__device__ inline void AddBlockSum(uint32_t value, uint32_t* warp_sums,
                                   uint32_t* to) {
  const uint32_t in_warp = __reduce_add_sync(kAllLanes, value);
  if (Lane() == 0) warp_sums[threadIdx.x / kWarp] = in_warp;
  __syncthreads();
  if (threadIdx.x != 0) return;
  uint32_t sum = 0;
  for (int w = 0; w < kBlockWarps; ++w) sum += warp_sums[w];
  if (sum != 0) atomicAdd(to, sum);
}

// The sum over the threads before this one. `warp_sums` is shared room for one
// number a warp; *total: over all threads.
__device__ inline uint32_t BlockExclusiveSum(uint32_t value,
                                             uint32_t* warp_sums,
                                             uint32_t* total) {
  uint32_t sum = value;
  for (int d = 1; d < kWarp; d *= 2) {
    const uint32_t below = __shfl_up_sync(kAllLanes, sum, d);
    if (Lane() >= d) sum += below;
  }
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  if (Lane() == kWarp - 1) warp_sums[warp] = sum;
  __syncthreads();
  uint32_t before = sum - value;
  uint32_t all = 0;
  for (int w = 0; w < kBlockWarps; ++w) {
    before += w < warp ? warp_sums[w] : 0;
    all += warp_sums[w];
  }
  __syncthreads();
  *total = all;
  return before;
}

}  // namespace oneemb::gpu
