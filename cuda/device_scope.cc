#include "cuda/device_scope.h"

#include "cuda/driver.h"

namespace oneemb::gpu {

DeviceScope::DeviceScope(int device) {
  CUresult (*get)(CUcontext*) = nullptr;
  CUcontext context = nullptr;
  if (FindInDriver("cuCtxGetCurrent", &get) == cudaSuccess &&
      get(&context) == CUDA_SUCCESS) {
    previous_ = context;
  }
  error_ = cudaSetDevice(device);
}

DeviceScope::~DeviceScope() {
  CUresult (*set)(CUcontext) = nullptr;
  if (previous_ == nullptr) return;
  if (FindInDriver("cuCtxSetCurrent", &set) == cudaSuccess) {
    (void)set(static_cast<CUcontext>(previous_));
  }
}

}  // namespace oneemb::gpu
