// The keys of cuda/sort.h, and how often each digit occurs in them.
#pragma once

#include <cstdint>

#include "cuda/sort.h"

namespace oneemb::gpu {

static_assert(kBlockThreads == SortPlan::kMaxDigits,
              "a thread looks after one digit");

// How often a block has seen each digit of the passes of the sort.
struct DigitCounts {
  uint32_t counts[SortPlan::kMaxPasses][SortPlan::kMaxDigits];
};

__device__ __forceinline__ uint32_t SortKey(const SortPlan& sort,
                                            int32_t slot) {
  return slot >= 0 ? static_cast<uint32_t>(slot) : sort.sentinel;
}

// For a whole block, before and after it counts.
__device__ inline void BeginCounts(DigitCounts* block) {
  for (auto& counts : block->counts) counts[threadIdx.x] = 0;
}

__device__ inline void AddCounts(const SortPlan& sort,
                                 const DigitCounts& block) {
  if (threadIdx.x >= 1U << sort.digit_bits) return;
  const int64_t copy = blockIdx.x % SortPlan::kCopies;
  uint32_t* const totals = sort.totals + copy * sort.num_totals() + threadIdx.x;
  for (int pass = 0; pass < sort.passes; ++pass) {
    const uint32_t count = block.counts[pass][threadIdx.x];
    if (count != 0) atomicAdd(totals + (pass << sort.digit_bits), count);
  }
}

__device__ inline void CountKey(const SortPlan& sort, uint32_t key,
                                DigitCounts* block) {
#pragma unroll
  for (int pass = 0; pass < SortPlan::kMaxPasses; ++pass) {
    if (pass == sort.passes) break;
    atomicAdd(&block->counts[pass][sort.Digit(key, pass)], 1U);
  }
}

}  // namespace oneemb::gpu
