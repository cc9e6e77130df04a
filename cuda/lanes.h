// How the lanes of a warp share rows.
#pragma once

#include <cstdint>

#include "core/macros.h"
#include "cuda/launch.h"

namespace oneemb::gpu {

// A row is read `width` columns a lane by `lanes` lanes, in as many steps as it
// takes; the other lanes of the warp have other rows.
struct RowShape {
  int32_t dim;
  int32_t lanes;  // a power of two, at most a warp
};

inline RowShape ShapeRows(int64_t dim, int width) {
  RowShape shape{static_cast<int32_t>(dim), 1};
  while (shape.lanes < kWarp && shape.lanes * width < dim) shape.lanes *= 2;
  return shape;
}

// The columns of a load: four where every row is aligned to them.
inline int RowWidth(int64_t dim) { return dim % 4 == 0 ? 4 : 1; }

}  // namespace oneemb::gpu
