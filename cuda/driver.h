// Functions of the driver; this library is not linked with it.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#include "cuda/launch.h"

namespace oneemb::gpu {

// As the driver has it since CUDA 12.0. Not found is an error.
template <class Function>
cudaError_t FindInDriver(const char* name, Function** function) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result{};
  ONEEMB_RETURN_IF_CUDA_ERROR(cudaGetDriverEntryPointByVersion(
      name, &found, 12000, cudaEnableDefault, &result));
  *function = reinterpret_cast<Function*>(found);
  return found == nullptr ? cudaErrorNotSupported : cudaSuccess;
}

}  // namespace oneemb::gpu
