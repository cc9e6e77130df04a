// Sums over the tiles of a grid, while other blocks find theirs.
//
// A tile says what it has to a word of its own and to one of its group; who
// wants the sum before a tile asks all groups before it, and the tiles of its
// own group, at once. Blocks take tiles in order, so that those before one are
// under way.
#pragma once

#include <cstdint>

#include "cuda/tile_sums.h"
#include "cuda/warp.cuh"

namespace oneemb::gpu {

// A word: a sum, and above that how many tiles have added to it.
constexpr uint64_t kOneTile = uint64_t{1} << 32;
static_assert(kMaxPositions < int64_t{kOneTile}, "sums do not overflow");

// Says what a tile has: `tile_word` is the tile's, `group_word` its group's.
__device__ __forceinline__ void TellTile(uint64_t* tile_word,
                                         uint64_t* group_word, uint32_t mine) {
  const uint64_t word = kOneTile | mine;
  *static_cast<volatile uint64_t*>(tile_word) = word;
  AtomicAdd64(group_word, word);
}

// The sum of `count` words, `stride` apart, each once `tiles` tiles are in it.
__device__ inline uint32_t AwaitSums(const uint64_t* words, int stride,
                                     int count, uint32_t tiles) {
  constexpr int kAtOnce = 16;
  uint32_t sum = 0;
  for (; count > 0; count -= kAtOnce, words += kAtOnce * stride) {
    uint64_t said[kAtOnce];
    bool complete = false;
    while (!complete) {
      complete = true;
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        said[k] = tiles * kOneTile;
        if (k >= count) continue;
        said[k] = *static_cast<const volatile uint64_t*>(words + k * stride);
      }
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        complete = complete && static_cast<uint32_t>(said[k] >> 32) == tiles;
      }
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) sum += static_cast<uint32_t>(said[k]);
  }
  return sum;
}

// The same by a warp, whose lanes take turns; the sum is in every lane.
__device__ inline uint32_t WarpAwaitSums(const uint64_t* words, uint32_t count,
                                         uint32_t tiles) {
  const int mine = (static_cast<int>(count) - Lane() + kWarp - 1) / kWarp;
  return __reduce_add_sync(kAllLanes,
                           AwaitSums(words + Lane(), kWarp, mine, tiles));
}

// The sum over the tiles before `tile`, which itself has `mine`; for a whole
// warp.
__device__ inline uint32_t SumBefore(const TileSums& sums, uint32_t tile,
                                     uint32_t mine) {
  const uint32_t group = tile >> sums.group_bits;
  const uint32_t first = group << sums.group_bits;
  if (Lane() == 0) TellTile(sums.tiles + tile, sums.groups + group, mine);
  return WarpAwaitSums(sums.groups, group, 1U << sums.group_bits) +
         WarpAwaitSums(sums.tiles + first, tile - first, 1);
}

}  // namespace oneemb::gpu
