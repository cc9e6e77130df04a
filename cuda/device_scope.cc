#include "cuda/device_scope.h"

#include "cuda/driver.h"

namespace oneemb::gpu {

DeviceScope::DeviceScope(int device) {
  static const auto get = FindInDriver<CUresult(CUcontext*)>("cuCtxGetCurrent");
  CUcontext context = nullptr;
  if (get != nullptr && get(&context) == CUDA_SUCCESS) previous_ = context;
  error_ = cudaSetDevice(device);
}

DeviceScope::~DeviceScope() {
  static const auto set = FindInDriver<CUresult(CUcontext)>("cuCtxSetCurrent");
  if (previous_ == nullptr || set == nullptr) return;
  (void)set(static_cast<CUcontext>(previous_));
}

}  // namespace oneemb::gpu
