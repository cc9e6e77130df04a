// What a row holds that nobody has trained.
#pragma once

#include <cstdint>

#include "core/initializers.h"
#include "core/optimizer_math.h"

namespace oneemb::gpu {

// The lanes that draw one row of so many parts of four columns: at most as many
// as write 128 bytes at once. More would have less to draw each, for what it
// takes to begin a row.
__device__ __forceinline__ int DrawLanes(int parts) {
  int lanes = 1;
  while (lanes < 8 && lanes < parts) lanes *= 2;
  return lanes;
}

// Draws the initial row of (table, id), four columns at a time. Where a table
// has one initializer for all columns, it is read once.
template <Draws kDraws>
class InitialRow {
 public:
  __device__ InitialRow(const RowInitializers& rows, uint16_t table,
                        uint64_t id)
      : rows_(rows), id_(id), table_(table) {
    if (rows.num_columns == 1) only_ = rows.configs[table];
  }

  // Columns 4 * block ... 4 * block + 3; those past the end of the row are
  // undefined.
  __device__ void Draw(uint32_t block, float (&values)[4]) const {
    if (rows_.num_columns > 1) {
      InitialColumns<kDraws>(rows_, table_, id_, block, values);
      return;
    }
    InitialBlock<kDraws>(only_, rows_.seed, rows_.DrawTable(table_), id_, block,
                         values);
  }

 private:
  const RowInitializers& rows_;
  const uint64_t id_;
  const uint16_t table_;
  InitializerConfig only_;
};

// Writes words 4 * part ... 4 * part + 3 of a new row, as many as it has.
template <Draws kDraws>
__device__ void WriteNewWords(const InitialRow<kDraws>& initial,
                              const OptimizerConfig& optimizer, int64_t dim,
                              int64_t row_words, uint32_t part, uint32_t* row) {
  float values[4] = {};
  uint32_t words[4];
  const int64_t first = 4 * int64_t{part};
  if (first < dim) initial.Draw(part, values);
#pragma unroll
  for (int c = 0; c < 4; ++c) words[c] = FloatBits(values[c]);
  if (first + 4 > dim) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const int64_t word = first + c;
      if (word < dim || word >= row_words) continue;
      DispatchOptimizer(optimizer.kind, [&](auto kind) {
        words[c] = InitialStateWord<decltype(kind)>(optimizer, dim, word);
      });
    }
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
