// How the lanes of a warp share rows.
#pragma once

#include <cstdint>

#include "core/macros.h"
#include "cuda/launch.h"

namespace oneemb::gpu {

// A row is read `width` columns a lane by `lanes` lanes, in as many steps as it
// takes; the other lanes of the warp have other rows. Their number is a power
// of two, at most a warp, and kept as one: a division takes 20 instructions.
struct RowShape {
  int32_t dim;
  int32_t lane_bits;

  ONEEMB_HD int lanes() const { return 1 << lane_bits; }
  // Rows side by side.
  ONEEMB_HD int groups() const { return kWarp >> lane_bits; }
  // The row of a lane of the warp, and its place among the lanes of that.
  ONEEMB_HD int GroupOf(int lane) const { return lane >> lane_bits; }
  ONEEMB_HD int LaneOf(int lane) const { return lane & (lanes() - 1); }
};

inline RowShape ShapeRows(int64_t dim, int width) {
  RowShape shape{static_cast<int32_t>(dim), 0};
  while (shape.lanes() < kWarp && shape.lanes() * width < dim)
    ++shape.lane_bits;
  return shape;
}

// The columns of a load: four where every row is aligned to them.
inline int RowWidth(int64_t dim) { return dim % 4 == 0 ? 4 : 1; }

}  // namespace oneemb::gpu
