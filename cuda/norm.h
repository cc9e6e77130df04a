// The norm of the summed row gradients of a batch.
#pragma once

#include <cstdint>
#include <vector>

#include "core/table_view.h"
#include "core/update_batch.h"
#include "cuda/launch.h"

namespace oneemb::gpu {

int64_t NormSpace(const TableRules& rules, int64_t n, int64_t num_batches);

// As oneemb::GlobalNorm on the CPU, to the bit; *norm is on the device.
cudaError_t GlobalNorm(cudaStream_t stream, const TableRules& rules,
                       const std::vector<UpdateBatch>& batches, FloatType type,
                       float* norm, void* workspace);

}  // namespace oneemb::gpu
