// Kernels that follow each other within one call.
//
// Between two kernels of a stream the GPU stands still for a microsecond or
// two, which a small batch feels. A chained kernel's blocks are set up while
// the kernel before it ends, and wait there ("programmatic dependent launch",
// from compute capability 9 on).
#pragma once

#include <cuda_runtime.h>

#include "cuda/launch.h"

namespace oneemb::gpu {

// The kernel that is chained to this one may be set up.
__device__ __forceinline__ void LetNextBegin() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Waits until the kernel before this one is done and its writes are seen. In
// every thread, for the kernel behind this one relies on it; what comes before
// may read what was there when the kernel before this one began.
__device__ __forceinline__ void AwaitPrevious() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The first thing most chained kernels do.
__device__ __forceinline__ void WaitForPrevious() {
  LetNextBegin();
  AwaitPrevious();
}

// Whether the current device and its driver chain kernels, also where a stream
// is captured as a graph.
inline bool CanChain() {
  constexpr int kDriver = 12040;
  int device = 0;
  int major = 0;
  int driver = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor,
                                device) == cudaSuccess &&
         cudaDriverGetVersion(&driver) == cudaSuccess && major >= 9 &&
         driver >= kDriver;
}

// Launches a kernel right behind another kernel of the same call, which it
// waits for by WaitForPrevious.
template <int kThreads = kBlockThreads, class... Params, class... Args>
cudaError_t LaunchNext(cudaStream_t stream, void (*kernel)(Params...),
                       unsigned blocks, const Args&... args) {
  cudaLaunchAttribute chained{};
  chained.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  chained.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(kThreads);
  config.stream = stream;
  config.attrs = &chained;
  config.numAttrs = CanChain() ? 1 : 0;
  return cudaLaunchKernelEx(&config, kernel, args...);
}

}  // namespace oneemb::gpu
