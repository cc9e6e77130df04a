// update: gradients into rows, insertion and optimizer, by a fixed number of
// launches.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "core/table_view.h"
#include "core/update_batch.h"
#include "cuda/launch.h"

namespace oneemb::gpu {

// Operands of one update. All pointers, the scalars' too, are to the device.
struct UpdateOperands {
  std::vector<UpdateBatch> batches;
  FloatType gradient_type;
  const float* learning_rate;
  const float* grad_scale;
  const bool* apply;
  uint32_t* step;
  uint32_t* generation;
};

// Bytes of workspace for `n` positions of `num_batches` lookups.
int64_t UpdateSpace(const TableRules& rules, int64_t capacity, int64_t n,
                    int64_t num_batches);

struct PlaceState;  // cuda/place.h

// What is put on the stream where slots are found and nothing has changed yet.
using JudgeHook = std::function<cudaError_t(PlaceState*)>;

// As oneemb::Update on the CPU, to the bit.
cudaError_t Update(cudaStream_t stream, const TableView& table,
                   const TableRules& rules, const UpdateOperands& operands,
                   void* workspace, const JudgeHook& judge = nullptr);

}  // namespace oneemb::gpu
