// What cuda/tile_sums.cuh keeps in the workspace.
#pragma once

#include <cstdint>

#include "cuda/launch.h"

namespace oneemb::gpu {

struct TileSums {
  uint64_t* tiles;
  uint64_t* groups;
  int group_bits;  // a group is a power of two of tiles
};

// For so many tiles: about as many in a group as there are groups then.
inline int GroupBits(int64_t num_tiles) {
  int bits = 0;
  while (int64_t{1} << (2 * bits) < num_tiles) ++bits;
  return bits;
}

inline int64_t NumGroups(int64_t num_tiles) {
  return CeilDiv(num_tiles, int64_t{1} << GroupBits(num_tiles));
}

// All of it begins as zeros.
inline TileSums TakeTileSums(int64_t num_tiles, Workspace* workspace) {
  TileSums sums{};
  sums.group_bits = GroupBits(num_tiles);
  sums.tiles = workspace->Take<uint64_t>(num_tiles);
  sums.groups = workspace->Take<uint64_t>(NumGroups(num_tiles));
  return sums;
}

}  // namespace oneemb::gpu
