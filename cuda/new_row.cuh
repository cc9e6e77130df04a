// What a row holds that nobody has trained.
#pragma once

#include <cstdint>

#include "core/initializers.h"
#include "core/optimizer_math.h"

namespace oneemb::gpu {

// Words 4 * part ... 4 * part + 3 of the new row of (table, id), as many as it
// has.
inline __device__ void WriteNewWords(const RowInitializers& rows,
                                     const OptimizerConfig& optimizer,
                                     int64_t dim, int64_t row_words,
                                     uint16_t table, uint64_t id, uint32_t part,
                                     uint32_t* row) {
  float values[4] = {};
  uint32_t words[4];
  const int64_t first = 4 * int64_t{part};
  if (first < dim) InitialColumns(rows, table, id, part, values);
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    const int64_t word = first + c;
    words[c] = FloatBits(values[c]);
    if (word < dim || word >= row_words) continue;
    DispatchOptimizer(optimizer.kind, [&](auto kind) {
      words[c] = InitialStateWord<decltype(kind)>(optimizer, dim, word);
    });
  }
  if (row_words % 4 == 0) {
    *reinterpret_cast<uint4*>(row + first) =
        make_uint4(words[0], words[1], words[2], words[3]);
    return;
  }
#pragma unroll
  for (int c = 0; c < 4; ++c) {
    if (first + c < row_words) row[first + c] = words[c];
  }
}

}  // namespace oneemb::gpu
