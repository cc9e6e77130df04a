// The device that a thread uses, for a while.
#pragma once

#include <cuda_runtime_api.h>

namespace oneemb::gpu {

// A thread of the Store's has used none yet, and would get the first one; one
// of XLA's gets back what it had, as XLA believes.
class DeviceScope {
 public:
  explicit DeviceScope(int device);
  ~DeviceScope();
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

  cudaError_t error() const { return error_; }

 private:
  void* previous_ = nullptr;  // a context of the driver's
  cudaError_t error_;
};

}  // namespace oneemb::gpu
