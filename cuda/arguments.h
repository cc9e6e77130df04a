// What kernels are given besides arrays: lists whose length the program fixes.
//
// A kernel takes short lists by value. Longer ones are written to a workspace
// by kernels that take a piece of them by value each, so that nothing is copied
// from host memory that a captured launch would find gone.
#pragma once

#include <cstdint>
#include <vector>

#include "core/initializers.h"
#include "core/update_batch.h"
#include "cuda/launch.h"

namespace oneemb::gpu {

// Copies `bytes` from the host to `to` by kernels.
cudaError_t Upload(cudaStream_t stream, const void* from, int64_t bytes,
                   void* to);

// The initializers of a table.
struct InitializerArgs {
  static constexpr int kInlineEnds = 8;
  static constexpr int kInlineConfigs = 32;

  RowInitializers rows;  // pointers null where the lists are inline
  Draws draws;           // what all of them are
  int32_t column_ends[kInlineEnds];
  InitializerConfig configs[kInlineConfigs];

  ONEEMB_HD RowInitializers View() const {
    RowInitializers view = rows;
    if (view.column_ends == nullptr) view.column_ends = column_ends;
    if (view.configs == nullptr) view.configs = configs;
    return view;
  }
};

// `rows` points to the host. Takes what it needs from the workspace.
cudaError_t MakeInitializerArgs(cudaStream_t stream,
                                const RowInitializers& rows, int32_t num_tables,
                                Workspace* workspace, InitializerArgs* args);
void MeasureInitializerArgs(int64_t num_columns, int64_t num_tables,
                            Workspace* workspace);

// One lookup of an update, and the position at which it begins.
struct PlacedBatch {
  UpdateBatch batch;
  int64_t begin;
};

// The lookups of one update, laid end to end.
struct FlatBatch {
  static constexpr int kInline = 6;

  int32_t count;
  int64_t size;               // positions
  const PlacedBatch* placed;  // null where the list is inline
  PlacedBatch first[kInline];

  ONEEMB_HD const PlacedBatch* list() const {
    return placed == nullptr ? first : placed;
  }

  // The lookup that a position is in.
  ONEEMB_HD const PlacedBatch& Find(int64_t position) const {
    const PlacedBatch* batch = list();
    int32_t left = count;
    while (left > 1) {
      const int32_t half = left / 2;
      const bool right = batch[half].begin <= position;
      batch += right ? half : 0;
      left = right ? left - half : half;
    }
    return *batch;
  }
};

cudaError_t MakeFlatBatch(cudaStream_t stream,
                          const std::vector<UpdateBatch>& batches,
                          Workspace* workspace, FlatBatch* flat);
void MeasureFlatBatch(int64_t num_batches, Workspace* workspace);

}  // namespace oneemb::gpu
