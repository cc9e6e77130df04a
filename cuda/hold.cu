#include "cuda/hold.h"

namespace oneemb::gpu {
namespace {

__global__ void HoldUnlessZeroKernel(const uint32_t* words, int count,
                                     const volatile uint32_t* done,
                                     uint32_t ticket) {
  uint32_t any = 0;
  for (int i = 0; i < count; ++i) any |= words[i];
  if (any == 0) return;
  constexpr unsigned kNanoseconds = 1000;  // between two looks over the bus
  while (static_cast<int32_t>(*done - ticket) < 0) __nanosleep(kNanoseconds);
}

}  // namespace

cudaError_t HoldStreamUnlessZero(cudaStream_t stream, const uint32_t* words,
                                 int count, const volatile uint32_t* done,
                                 uint32_t ticket) {
  HoldUnlessZeroKernel<<<1, 1, 0, stream>>>(words, count, done, ticket);
  return cudaGetLastError();
}

}  // namespace oneemb::gpu
