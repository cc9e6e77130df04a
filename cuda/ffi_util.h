// What the CUDA handlers share, besides what they share with those of the CPU.
//
// Only handlers include this: kernels do not know XLA.
#pragma once

#include <cuda_runtime_api.h>

#include <string>

#include "cuda/launch.h"
#include "ffi/binding_ffi.h"
#include "ffi/decode_ffi.h"
#include "xla/ffi/api/ffi.h"

// Defines a handler that XLA may record once and replay as part of a CUDA
// graph.
#define ONEEMB_DEFINE_CUDA_HANDLER(symbol, function) \
  ONEEMB_DEFINE_HANDLER(symbol, function,            \
                        {xla::ffi::Traits::kCmdBufferCompatible})

namespace oneemb::gpu {

inline xla::ffi::Error ToFfi(const char* call, cudaError_t error) {
  if (error == cudaSuccess) return xla::ffi::Error::Success();
  return xla::ffi::Error::Internal(std::string(call) + ": CUDA says " +
                                   cudaGetErrorString(error));
}

// Positions are 32-bit numbers with some bits to spare.
inline xla::ffi::Error CheckPositions(int64_t n) {
  if (n <= kMaxPositions) return xla::ffi::Error::Success();
  return xla::ffi::Error::InvalidArgument(
      "ids: " + std::to_string(n) + " in one call; on a GPU use at most " +
      std::to_string(kMaxPositions));
}

// Fails unless `buffer` is a workspace of at least `bytes`.
inline xla::ffi::Error CheckWorkspace(const xla::ffi::AnyBuffer& buffer,
                                      int64_t bytes) {
  const auto size = static_cast<int64_t>(buffer.element_count());
  if (buffer.element_type() == xla::ffi::U8 && size >= bytes) {
    return xla::ffi::Error::Success();
  }
  return xla::ffi::Error::Internal("workspace: " + std::to_string(size) +
                                   " bytes, " + std::to_string(bytes) +
                                   " are needed");
}

// The workspace of a call with any number of results: the last of them.
inline xla::ffi::Error DecodeWorkspace(const xla::ffi::RemainingRets& results,
                                       int64_t bytes, void** workspace) {
  auto last = results.get<xla::ffi::AnyBuffer>(results.size() - 1);
  if (last.has_error()) return last.error();
  *workspace = (*last)->untyped_data();
  return CheckWorkspace(**last, bytes);
}

}  // namespace oneemb::gpu
