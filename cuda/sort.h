// Brings the gradients of one row together: a stable sort of positions by slot.
//
// A radix sort from the lowest digit up, one kernel a pass. A block of threads
// sorts one tile. Where its entries go follows from how often each digit occurs
// in every tile, which whoever wrote the entries has counted before.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/macros.h"
#include "cuda/launch.h"

namespace oneemb::gpu {

// A position of the batch and the row its gradient goes to.
using SlotPosition = uint64_t;  // (slot << 32) | position

struct SortPlan {
  static constexpr int kMaxDigitBits = 8;
  static constexpr int kMaxPasses = 4;
  static constexpr int kMinTile = 512;

  int64_t n;
  uint32_t sentinel;  // the key of what has no row; sorts last
  int passes;
  int digit_bits;
  int tile_bits;  // a tile is a power of two of positions, at least kMinTile
  int64_t num_tiles;
  int64_t group_tiles;  // tiles whose counts are added up once more
  int64_t num_groups;
  // A pass has [num_tiles + num_groups][1 << digit_bits] counts.
  uint32_t* counts;
  SlotPosition* entries[2];

  int64_t pass_counts() const { return (num_tiles + num_groups) << digit_bits; }
};

// A plan for `n` keys below `num_keys`, without its arrays.
SortPlan PlanSort(int64_t n, int64_t num_keys);

// Where a kernel counts the keys of a tile, for pass `pass`.
struct TileCounts {
  uint32_t* counts;
  int64_t num_tiles;
  int64_t group_tiles;
  int digit_bits;
  int shift;

  ONEEMB_HD uint32_t* OfTile(int64_t tile) const {
    return counts + (tile << digit_bits);
  }
  ONEEMB_HD uint32_t* OfGroup(int64_t group) const {
    return counts + ((num_tiles + group) << digit_bits);
  }
  ONEEMB_HD uint32_t Digit(uint32_t key) const {
    return (key >> shift) & ((1U << digit_bits) - 1);
  }
};

ONEEMB_HD TileCounts CountsOfPass(const SortPlan& plan, int pass) {
  return {plan.counts +
              pass * ((plan.num_tiles + plan.num_groups) << plan.digit_bits),
          plan.num_tiles, plan.group_tiles, plan.digit_bits,
          pass * plan.digit_bits};
}

// Sorts keys[n] whose digits of the first pass are counted. Returns in *sorted
// one of plan.entries. Runs only if *active is not 0.
cudaError_t Sort(cudaStream_t stream, const SortPlan& plan,
                 const uint32_t* keys, const uint32_t* active,
                 const SlotPosition** sorted);

}  // namespace oneemb::gpu
