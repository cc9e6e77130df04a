// Carries rows between the memory of a device and that of its host, while the
// device goes on with its work: the copies have streams of their own.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "cuda/block_pool.h"
#include "store/buffer_source.h"

namespace oneemb {
class Arrival;  // store/arrival.h
}

namespace oneemb::gpu {

// As a source of buffers it has pinned ones (cuda/pinned.h), which are near
// when they are on the device. Functions are for threads that may wait for
// CUDA, but for Return.
class RowCarrier final : public BufferSource {
 public:
  // That of the device which the thread uses, until the process ends.
  static cudaError_t Of(RowCarrier** carrier);

  char* Take(int64_t bytes) override;
  void Return(char* data, int64_t bytes) override;
  std::shared_ptr<const char> CopyNear(const char* data,
                                       int64_t bytes) override;

  // Memory of the device; null where that has no room for it.
  SourceBuffer TakeNear(int64_t bytes);
  // Bytes that the stream writes there go on to a buffer of the host, which
  // outlives their arrival. On an error nothing is on its way any more.
  cudaError_t CopyBack(cudaStream_t stream, SourceBuffer* near, int64_t bytes,
                       char* data, std::shared_ptr<Arrival>* arriving);

 private:
  class CopyOfRows;

  explicit RowCarrier(int device);
  cudaError_t Start();
  void FreeArrived();

  const int device_;
  const std::unique_ptr<BlockPool> blocks_;  // on the device
  // One for each direction: the bus has two.
  cudaStream_t in_ = nullptr;
  cudaStream_t out_ = nullptr;

  std::mutex mutex_;
  std::vector<std::weak_ptr<CopyOfRows>> leaving_;
};

}  // namespace oneemb::gpu
