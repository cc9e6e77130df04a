// A stream that waits for the host, if there is a reason to.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

namespace oneemb::gpu {

// Unless all of `count` words on the device are 0, the stream waits until
// *done, which is in memory of the host and may wrap around, has come to
// `ticket`.
cudaError_t HoldStreamUnlessZero(cudaStream_t stream, const uint32_t* words,
                                 int count, const volatile uint32_t* done,
                                 uint32_t ticket);

}  // namespace oneemb::gpu
