#include "cuda/pinned.h"

#include <cuda.h>
#include <cuda_runtime_api.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <vector>

#include "store/pages.h"

namespace oneemb::gpu {
namespace {

// Sizes in use: four between a power of two and the next.
int64_t SizeClass(int64_t bytes) {
  int64_t power = int64_t{16} << 10;
  while (power * 2 <= bytes) power *= 2;
  const int64_t step = power / 4;
  return (std::max<int64_t>(bytes, 1) + step - 1) / step * step;
}

// A piece of pinned memory.
struct Block {
  char* data;
  int64_t bytes;
  bool registered;  // else from CUDA
  bool idle;
};

// Of a size from which on pages are huge.
bool RegisterBlock(int64_t bytes, Block* block) {
  auto* const data = static_cast<char*>(PageSource::System()->Map(bytes));
  if (data == nullptr) return false;
  const auto size = static_cast<size_t>(bytes);
  // A fork does not get it: no page may be replaced by a copy while the device
  // knows it.
  (void)madvise(data, size, MADV_DONTFORK);
  if (cudaHostRegister(data, size,
                       cudaHostRegisterPortable | cudaHostRegisterMapped) ==
      cudaSuccess) {
    void* seen = nullptr;
    if (cudaHostGetDevicePointer(&seen, data, 0) == cudaSuccess &&
        seen == data) {
      *block = {data, bytes, true, false};
      return true;
    }
    (void)cudaHostUnregister(data);
  }
  (void)cudaGetLastError();  // it is not an error of the caller's
  PageSource::System()->Unmap(data, bytes);
  return false;
}

bool AllocateBlock(int64_t bytes, Block* block) {
  void* data = nullptr;
  if (cudaHostAlloc(&data, static_cast<size_t>(bytes),
                    cudaHostAllocPortable | cudaHostAllocMapped) ==
      cudaSuccess) {
    *block = {static_cast<char*>(data), bytes, false, false};
    return true;
  }
  (void)cudaGetLastError();
  return false;
}

void FreeBlock(const Block& block) {
  if (!block.registered) {
    (void)cudaFreeHost(block.data);
    return;
  }
  (void)cudaHostUnregister(block.data);
  PageSource::System()->Unmap(block.data, block.bytes);
}

std::atomic<int> pinning_device{0};

// A thread that has used no device would get the first one, and make a context
// on it.
void UseDevice() {
  int current = 0;
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result{};
  CUcontext context = nullptr;
  if (cudaGetDriverEntryPointByVersion("cuCtxGetCurrent", &found, 12000,
                                       cudaEnableDefault,
                                       &result) != cudaSuccess ||
      found == nullptr) {
    return;
  }
  const auto get = reinterpret_cast<CUresult (*)(CUcontext*)>(found);
  if (get(&context) == CUDA_SUCCESS && context != nullptr) return;
  if (cudaGetDevice(&current) == cudaSuccess && current != pinning_device) {
    (void)cudaSetDevice(pinning_device);
  }
}

class Pinned final : public BufferSource {
 public:
  char* Take(int64_t bytes) override {
    const int64_t size = SizeClass(bytes);
    const std::lock_guard<std::mutex> lock(mutex_);
    if (Block* const kept = FindIdle(size); kept != nullptr) {
      kept->idle = false;
      return kept->data;
    }
    blocks_.reserve(blocks_.size() + 1);
    UseDevice();
    FreeSpare();
    Block block{};
    if (!(size >= kHugePageBytes && RegisterBlock(size, &block)) &&
        !AllocateBlock(size, &block)) {
      return nullptr;
    }
    blocks_.push_back(block);
    return block.data;
  }

  void Return(char* data, int64_t /*bytes*/) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (Block& block : blocks_) block.idle = block.idle || block.data == data;
  }

 private:
  // The smallest that will do and is not far too large, or null.
  Block* FindIdle(int64_t size) {
    Block* found = nullptr;
    for (Block& block : blocks_) {
      if (!block.idle || block.bytes < size || block.bytes > 2 * size) continue;
      if (found == nullptr || block.bytes < found->bytes) found = &block;
    }
    return found;
  }

  // Until no more is idle than is in use.
  void FreeSpare() {
    int64_t idle = 0;
    int64_t in_use = 0;
    for (const Block& block : blocks_) {
      (block.idle ? idle : in_use) += block.bytes;
    }
    const auto spare = [&](const Block& block) {
      if (!block.idle || idle <= in_use) return false;
      idle -= block.bytes;
      FreeBlock(block);
      return true;
    };
    blocks_.erase(std::remove_if(blocks_.begin(), blocks_.end(), spare),
                  blocks_.end());
  }

  std::mutex mutex_;
  std::vector<Block> blocks_;
};

}  // namespace

BufferSource* PinnedBuffers() {
  static auto* const pinned = new Pinned;  // outlives every thread
  return pinned;
}

void SetPinningDevice(int device) { pinning_device = device; }

}  // namespace oneemb::gpu
