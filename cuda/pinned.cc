#include "cuda/pinned.h"

#include <cuda_runtime_api.h>
#include <sys/mman.h>

#include <cstdint>

#include "cuda/block_pool.h"
#include "store/pages.h"

namespace oneemb::gpu {
namespace {

// Kinds of blocks: ours that CUDA knows, or CUDA's.
constexpr int kRegistered = 0;
constexpr int kAllocated = 1;

class Pinned final : public BlockPool {
 protected:
  bool Make(int64_t bytes, Block* block) override {
    return (bytes >= kHugePageBytes && Register(bytes, block)) ||
           Allocate(bytes, block);
  }

  void Free(const Block& block) override {
    if (block.kind == kAllocated) {
      (void)cudaFreeHost(block.data);
      return;
    }
    (void)cudaHostUnregister(block.data);
    PageSource::System()->Unmap(block.data, block.bytes);
  }

 private:
  // Of a size from which on pages are huge.
  static bool Register(int64_t bytes, Block* block) {
    auto* const data = static_cast<char*>(PageSource::System()->Map(bytes));
    if (data == nullptr) return false;
    const auto size = static_cast<size_t>(bytes);
    // A fork does not get it: no page may be replaced by a copy while the
    // device knows it.
    (void)madvise(data, size, MADV_DONTFORK);
    if (cudaHostRegister(data, size,
                         cudaHostRegisterPortable | cudaHostRegisterMapped) ==
        cudaSuccess) {
      void* seen = nullptr;
      if (cudaHostGetDevicePointer(&seen, data, 0) == cudaSuccess &&
          seen == data) {
        *block = {data, bytes, kRegistered};
        return true;
      }
      (void)cudaHostUnregister(data);
    }
    (void)cudaGetLastError();  // it is not an error of the caller's
    PageSource::System()->Unmap(data, bytes);
    return false;
  }

  static bool Allocate(int64_t bytes, Block* block) {
    void* data = nullptr;
    if (cudaHostAlloc(&data, static_cast<size_t>(bytes),
                      cudaHostAllocPortable | cudaHostAllocMapped) ==
        cudaSuccess) {
      *block = {static_cast<char*>(data), bytes, kAllocated};
      return true;
    }
    (void)cudaGetLastError();
    return false;
  }
};

}  // namespace

BufferSource* PinnedBuffers() {
  static auto* const pinned = new Pinned;  // outlives every thread
  return pinned;
}

}  // namespace oneemb::gpu
