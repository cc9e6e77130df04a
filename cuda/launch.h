// Sizes of launches, and pieces of a workspace.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "core/macros.h"

namespace oneemb::gpu {

constexpr int kWarp = 32;
constexpr int kBlockThreads = 256;
constexpr int kBlockWarps = kBlockThreads / kWarp;

// Positions of one call. Claims of cells (cuda/claim.cuh) take the bits above.
constexpr int64_t kMaxPositions = int64_t{1} << 29;

ONEEMB_HD constexpr int64_t CeilDiv(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// Blocks for `items`, one at least: a kernel that keeps books runs even when it
// has nothing to do.
inline unsigned NumBlocks(int64_t items, int64_t per_block) {
  return static_cast<unsigned>(items < 1 ? 1 : CeilDiv(items, per_block));
}

// Whether a batch of `n` positions is too small to give every multiprocessor
// much work.
inline bool IsSmallBatch(int64_t n) { return n <= int64_t{1} << 17; }

// That a stream is not ready is no error, but CUDA keeps it as one for whoever
// asks for the last error.
inline cudaError_t NotReadyAside(cudaError_t error) {
  if (error == cudaErrorNotReady) (void)cudaGetLastError();
  return error;
}

// Cuts one buffer into arrays. Without a buffer it only adds up their sizes.
class Workspace {
 public:
  explicit Workspace(void* base = nullptr)
      : base_(reinterpret_cast<uintptr_t>(base)) {}

  template <class T>
  T* Take(int64_t count) {
    constexpr int64_t kAlign = 256;
    const uintptr_t at = base_ + static_cast<uintptr_t>(used_);
    used_ += CeilDiv(count * int64_t{sizeof(T)}, kAlign) * kAlign;
    return reinterpret_cast<T*>(at);
  }

  int64_t used() const { return used_; }

 private:
  uintptr_t base_;
  int64_t used_ = 0;
};

}  // namespace oneemb::gpu

// Returns the error of a call of the CUDA runtime from the function around it.
#define ONEEMB_RETURN_IF_CUDA_ERROR(expression)                     \
  do {                                                              \
    const cudaError_t oneemb_cuda_error = (expression);             \
    if (oneemb_cuda_error != cudaSuccess) return oneemb_cuda_error; \
  } while (false)
