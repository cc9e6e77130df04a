// Brings the gradients of one row together: a stable sort of positions by slot.
//
// A radix sort from the lowest digit up, one kernel a pass. Whoever writes the
// keys counts the digits of all passes, which tells where each digit begins in
// the output of its pass. A block of threads sorts one tile; it tells the
// others how often it has each digit, and waits to hear that from the tiles
// before it, as in A. Adinets and D. Merrill, "Onesweep: A Faster Least
// Significant Digit Radix Sort for GPUs", 2022. There, a tile looks back over
// the tiles before it; here it asks all of them at once, or rather groups of
// them: all tiles of a batch fit onto the GPU, and would wait in a long chain.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/macros.h"
#include "cuda/launch.h"
#include "cuda/tile_sums.h"

namespace oneemb::gpu {

// A position of the batch and the row its gradient goes to.
using SlotPosition = uint64_t;  // (slot << 32) | position

struct SortPlan {
  static constexpr int kMaxDigitBits = 8;
  static constexpr int kMaxPasses = 4;
  static constexpr int kMaxDigits = 1 << kMaxDigitBits;
  // Blocks that count take turns, so that few wait for the same word.
  static constexpr int kCopies = 16;

  int64_t n;
  uint32_t sentinel;  // the key of what has no row; sorts last
  int passes;
  int digit_bits;
  int tile_bits;  // a tile is a power of two of positions
  int64_t num_tiles;
  int64_t num_groups;  // of tiles whose counts are added up once more
  // These begin as zeros.
  uint32_t* totals;   // [kCopies, passes, digits], of all keys
  uint32_t* tickets;  // [passes], tiles taken so far
  uint64_t* counts;   // [passes, num_tiles + num_groups, digits]
  SlotPosition* entries[2];

  ONEEMB_HD int64_t num_totals() const { return int64_t{passes} << digit_bits; }
  ONEEMB_HD int64_t pass_counts() const {
    return (num_tiles + num_groups) << digit_bits;
  }
  ONEEMB_HD uint32_t Digit(uint32_t key, int pass) const {
    return (key >> (pass * digit_bits)) & ((1U << digit_bits) - 1);
  }
};

// A plan for `n` keys below `num_keys`, without its arrays.
SortPlan PlanSort(int64_t n, int64_t num_keys);

// Takes the arrays that begin as zeros.
void TakeSortZeros(Workspace* workspace, SortPlan* plan);

// Sorts keys[n] whose digits are counted in the copies of plan.totals. Returns
// in *sorted one of plan.entries. Runs only if *active is not 0.
cudaError_t Sort(cudaStream_t stream, const SortPlan& plan,
                 const uint32_t* keys, const uint32_t* active,
                 const SlotPosition** sorted);

}  // namespace oneemb::gpu
