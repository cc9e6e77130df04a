// A point of a stream that others wait for.
#pragma once

#include <cuda_runtime_api.h>

#include "cuda/launch.h"

namespace oneemb::gpu {

class StreamPoint {
 public:
  StreamPoint() = default;
  ~StreamPoint() {
    if (event_ != nullptr) (void)cudaEventDestroy(event_);
  }
  StreamPoint(const StreamPoint&) = delete;
  StreamPoint& operator=(const StreamPoint&) = delete;

  // Where the stream is now; may be called again.
  cudaError_t Record(cudaStream_t stream) {
    if (event_ == nullptr) {
      ONEEMB_RETURN_IF_CUDA_ERROR(cudaEventCreateWithFlags(
          &event_, cudaEventBlockingSync | cudaEventDisableTiming));
    }
    return cudaEventRecord(event_, stream);
  }
  // Another stream waits.
  cudaError_t HoldStream(cudaStream_t stream) const {
    return cudaStreamWaitEvent(stream, event_, 0);
  }
  // Whether the stream has come there: cudaErrorNotReady if not.
  cudaError_t Query() const { return NotReadyAside(cudaEventQuery(event_)); }
  // This thread sleeps until then.
  cudaError_t Sleep() const { return cudaEventSynchronize(event_); }
  // This thread waits for what takes some microseconds: less than it may take
  // until a thread that sleeps is woken.
  cudaError_t Await() const {
    cudaError_t error = cudaErrorNotReady;
    while (error == cudaErrorNotReady) error = Query();
    return error;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace oneemb::gpu
