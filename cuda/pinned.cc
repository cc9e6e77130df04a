#include "cuda/pinned.h"

#include <cuda_runtime_api.h>
#include <sys/mman.h>

#include <cstdlib>
#include <map>
#include <mutex>
#include <vector>

namespace oneemb::gpu {
namespace {

constexpr int64_t kHugePageBytes = int64_t{2} << 20;

int64_t RoundUp(int64_t value, int64_t step) {
  return (value + step - 1) / step * step;
}

// Sizes in use: four between a power of two and the next, so that batches of
// about one size share their buffers.
int64_t SizeClass(int64_t bytes) {
  int64_t power = int64_t{16} << 10;
  while (power * 2 <= bytes) power *= 2;
  return RoundUp(bytes < 1 ? 1 : bytes, power / 4);
}

// Null where there is no memory, or this kind of it.
char* RegisterHugePages(int64_t bytes) {
  const int64_t rounded = RoundUp(bytes, kHugePageBytes);
  void* const data = std::aligned_alloc(static_cast<size_t>(kHugePageBytes),
                                        static_cast<size_t>(rounded));
  if (data == nullptr) return nullptr;
  (void)madvise(data, static_cast<size_t>(rounded), MADV_HUGEPAGE);
  void* seen = nullptr;
  if (cudaHostRegister(data, static_cast<size_t>(rounded),
                       cudaHostRegisterPortable | cudaHostRegisterMapped) ==
      cudaSuccess) {
    if (cudaHostGetDevicePointer(&seen, data, 0) == cudaSuccess &&
        seen == data) {
      return static_cast<char*>(data);
    }
    (void)cudaHostUnregister(data);
  }
  (void)cudaGetLastError();  // it is not an error of the caller's
  std::free(data);
  return nullptr;
}

char* AllocatePinned(int64_t bytes) {
  void* data = nullptr;
  if (cudaHostAlloc(&data, static_cast<size_t>(bytes),
                    cudaHostAllocPortable | cudaHostAllocMapped) ==
      cudaSuccess) {
    return static_cast<char*>(data);
  }
  (void)cudaGetLastError();
  return nullptr;
}

class Pinned final : public BufferSource {
 public:
  char* Take(int64_t bytes) override {
    const int64_t size = SizeClass(bytes);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      std::vector<char*>& kept = kept_[size];
      if (!kept.empty()) {
        char* const data = kept.back();
        kept.pop_back();
        return data;
      }
    }
    char* const data =
        size >= kHugePageBytes ? RegisterHugePages(size) : nullptr;
    return data != nullptr ? data : AllocatePinned(size);
  }

  void Return(char* data, int64_t bytes) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    kept_[SizeClass(bytes)].push_back(data);
  }

 private:
  std::mutex mutex_;
  std::map<int64_t, std::vector<char*>> kept_;
};

}  // namespace

BufferSource* PinnedBuffers() {
  static auto* const pinned = new Pinned;  // outlives every thread
  return pinned;
}

}  // namespace oneemb::gpu
