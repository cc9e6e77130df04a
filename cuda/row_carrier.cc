#include "cuda/row_carrier.h"

#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "cuda/device_scope.h"
#include "cuda/launch.h"
#include "cuda/pinned.h"
#include "cuda/stream_point.h"
#include "store/arrival.h"

namespace oneemb::gpu {
namespace {

// Blocks of a device's memory. Others live on what is free there, so a block is
// at most half of that.
class DeviceBlocks final : public BlockPool {
 public:
  explicit DeviceBlocks(int device) : device_(device) {}

 protected:
  bool Make(int64_t bytes, Block* block) override {
    const DeviceScope scope(device_);
    size_t available = 0;
    size_t all = 0;
    void* data = nullptr;
    const auto size = static_cast<size_t>(bytes);
    const bool made = scope.error() == cudaSuccess &&
                      cudaMemGetInfo(&available, &all) == cudaSuccess &&
                      size <= available / 2 &&
                      cudaMalloc(&data, size) == cudaSuccess;
    if (!made) (void)cudaGetLastError();  // it is not an error of the caller's
    *block = {static_cast<char*>(data), bytes, 0};
    return made;
  }
  void Free(const Block& block) override {
    const DeviceScope scope(device_);
    (void)cudaFree(block.data);
  }

 private:
  const int device_;
};

class CopyOfRows final : public Arrival {
 public:
  CopyOfRows(int device, SourceBuffer from)
      : device_(device), from_(std::move(from)) {}
  ~CopyOfRows() override { (void)Await(); }

  // Once `source` has come to where it is now.
  cudaError_t Begin(cudaStream_t source, int64_t bytes, char* to,
                    cudaStream_t stream) {
    StreamPoint written;
    ONEEMB_RETURN_IF_CUDA_ERROR(written.Record(source));
    ONEEMB_RETURN_IF_CUDA_ERROR(written.HoldStream(stream));
    ONEEMB_RETURN_IF_CUDA_ERROR(
        cudaMemcpyAsync(to, from_.get(), static_cast<size_t>(bytes),
                        cudaMemcpyDeviceToHost, stream));
    const cudaError_t recorded = end_.Record(stream);
    // What is under way is not to lose its memory.
    if (recorded != cudaSuccess) (void)cudaStreamSynchronize(stream);
    begun_ = recorded == cudaSuccess;
    return recorded;
  }

  Status Await() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!begun_) return status_;
    begun_ = false;
    const DeviceScope scope(device_);
    if (const cudaError_t error = end_.Sleep(); error != cudaSuccess) {
      status_ = {
          StatusKind::kIoError,
          std::string("copying rows from a GPU: ") + cudaGetErrorString(error)};
    }
    from_.reset();
    return status_;
  }

 private:
  const int device_;
  std::mutex mutex_;
  SourceBuffer from_;
  StreamPoint end_;
  bool begun_ = false;
  Status status_;
};

}  // namespace

RowCarrier::RowCarrier(int device)
    : device_(device), blocks_(std::make_unique<DeviceBlocks>(device)) {}

cudaError_t RowCarrier::Start() {
  ONEEMB_RETURN_IF_CUDA_ERROR(
      cudaStreamCreateWithFlags(&in_, cudaStreamNonBlocking));
  return cudaStreamCreateWithFlags(&out_, cudaStreamNonBlocking);
}

cudaError_t RowCarrier::Of(RowCarrier** carrier) {
  static auto* const carriers = new std::map<int, RowCarrier*>;
  static std::mutex mutex;
  int device = 0;
  ONEEMB_RETURN_IF_CUDA_ERROR(cudaGetDevice(&device));
  const std::lock_guard<std::mutex> lock(mutex);
  RowCarrier*& found = (*carriers)[device];
  if (found == nullptr) {
    std::unique_ptr<RowCarrier> made(new RowCarrier(device));
    ONEEMB_RETURN_IF_CUDA_ERROR(made->Start());
    found = made.release();
  }
  *carrier = found;
  return cudaSuccess;
}

char* RowCarrier::Take(int64_t bytes) {
  const DeviceScope scope(device_);
  return PinnedBuffers()->Take(bytes);
}

void RowCarrier::Return(char* data, int64_t bytes) {
  PinnedBuffers()->Return(data, bytes);
}

SourceBuffer RowCarrier::TakeNear(int64_t bytes) {
  return TakeBuffer(blocks_.get(), bytes);
}

std::shared_ptr<const char> RowCarrier::CopyNear(const char* data,
                                                 int64_t bytes) {
  const DeviceScope scope(device_);
  SourceBuffer near = TakeNear(bytes);
  if (near == nullptr) return nullptr;
  StreamPoint end;
  const bool copied =
      cudaMemcpyAsync(near.get(), data, static_cast<size_t>(bytes),
                      cudaMemcpyHostToDevice, in_) == cudaSuccess &&
      end.Record(in_) == cudaSuccess && end.Sleep() == cudaSuccess;
  if (!copied) {
    (void)cudaStreamSynchronize(in_);
    (void)cudaGetLastError();
    return nullptr;
  }
  return near;
}

cudaError_t RowCarrier::CopyBack(cudaStream_t stream, SourceBuffer near,
                                 int64_t bytes, char* data,
                                 std::shared_ptr<Arrival>* arriving) {
  auto copy = std::make_shared<CopyOfRows>(device_, std::move(near));
  ONEEMB_RETURN_IF_CUDA_ERROR(copy->Begin(stream, bytes, data, out_));
  *arriving = std::move(copy);
  return cudaSuccess;
}

}  // namespace oneemb::gpu
