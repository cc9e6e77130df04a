// Functions of the driver; this library is not linked with it.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

namespace oneemb::gpu {

// As the driver has it since CUDA 12.0; null if it does not.
template <class Function>
Function* FindInDriver(const char* name) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result{};
  const cudaError_t error = cudaGetDriverEntryPointByVersion(
      name, &found, 12000, cudaEnableDefault, &result);
  if (error != cudaSuccess) (void)cudaGetLastError();
  return error == cudaSuccess ? reinterpret_cast<Function*>(found) : nullptr;
}

}  // namespace oneemb::gpu
