// What the CUDA library shows to the outside: FFI handlers, the FFI version
// that they were built for, and the size of the workspace that each one needs.
#pragma once

#include <cstdint>

#include "xla/ffi/api/ffi.h"

#define ONEEMB_CUDA_EXPORT extern "C" __attribute__((visibility("default")))

namespace oneemb::gpu {

#define ONEEMB_CUDA_HANDLER(name) \
  ONEEMB_CUDA_EXPORT XLA_FFI_Error* name(XLA_FFI_CallFrame* call_frame)

ONEEMB_CUDA_HANDLER(OneembCudaLookup);
ONEEMB_CUDA_HANDLER(OneembCudaUpdate);
ONEEMB_CUDA_HANDLER(OneembCudaGlobalNorm);
ONEEMB_CUDA_HANDLER(OneembCudaCreate);
ONEEMB_CUDA_HANDLER(OneembCudaGrow);
ONEEMB_CUDA_HANDLER(OneembCudaReadRows);
ONEEMB_CUDA_HANDLER(OneembCudaWriteRows);
ONEEMB_CUDA_HANDLER(OneembCudaStage);
ONEEMB_CUDA_HANDLER(OneembCudaPrefetch);
ONEEMB_CUDA_HANDLER(OneembCudaUpdateCached);
ONEEMB_CUDA_HANDLER(OneembCudaLookupCached);
ONEEMB_CUDA_HANDLER(OneembCudaReadCachedRows);
ONEEMB_CUDA_HANDLER(OneembCudaWriteCachedRows);
ONEEMB_CUDA_HANDLER(OneembCudaWriteDown);
ONEEMB_CUDA_HANDLER(OneembCudaFlush);

// XLA_FFI_API_MINOR of the headers.
ONEEMB_CUDA_EXPORT int32_t OneembCudaApiMinor();

// Takes a TierApi (tier/tier_api.h), which lives as long as the process:
// without it cached tables are refused.
ONEEMB_CUDA_EXPORT void OneembCudaSetTierApi(const void* api);

// Bytes of the result behind the results that the handler has on the CPU.
// `operation`: see kOperations in oneemb_jax/_cuda.py.
ONEEMB_CUDA_EXPORT int64_t OneembCudaWorkspace(
    int32_t operation, int64_t embedding_dim, int64_t num_columns,
    int64_t num_tables, int32_t shared_keys, int64_t capacity, int64_t n,
    int64_t num_lookups);

}  // namespace oneemb::gpu
