#include "cuda/row_carrier.h"

#include <algorithm>
#include <atomic>
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

// Blocks of a device's memory. Others live on what is free there, so a part of
// the whole is left.
class DeviceBlocks final : public BlockPool {
 public:
  explicit DeviceBlocks(int device) : device_(device) {}

 protected:
  bool Make(int64_t bytes, Block* block) override {
    // It takes time to ask, and what was refused will be so for a while.
    if (refusals_ > 0) {
      --refusals_;
      return false;
    }
    const DeviceScope scope(device_);
    size_t available = 0;
    size_t all = 0;
    void* data = nullptr;
    const auto size = static_cast<size_t>(bytes);
    const bool made = scope.error() == cudaSuccess &&
                      cudaMemGetInfo(&available, &all) == cudaSuccess &&
                      size + all / kLeft <= available &&
                      cudaMalloc(&data, size) == cudaSuccess;
    if (!made) {
      (void)cudaGetLastError();  // it is not an error of the caller's
      refusals_ = kRefusals;
    }
    *block = {static_cast<char*>(data), bytes, 0};
    return made;
  }
  void Free(const Block& block) override {
    const DeviceScope scope(device_);
    (void)cudaFree(block.data);
  }

 private:
  static constexpr size_t kLeft = 16;
  static constexpr int kRefusals = 64;

  const int device_;
  std::atomic<int> refusals_{0};
};

}  // namespace

class RowCarrier::CopyOfRows final : public Arrival {
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

  // Gives the memory on the device back if the rows have left it. Whether none
  // is left.
  bool FreeIfArrived() {
    // Who has the lock waits for them, and does it then.
    const std::unique_lock<std::mutex> lock(mutex_, std::try_to_lock);
    if (!lock.owns_lock()) return false;
    if (begun_ && end_.Query() == cudaSuccess) from_.reset();
    return from_ == nullptr;
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

// Rows may wait long to be written, but not on the device.
void RowCarrier::FreeArrived() {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto free = [](const std::weak_ptr<CopyOfRows>& copy) {
    const std::shared_ptr<CopyOfRows> known = copy.lock();
    return known == nullptr || known->FreeIfArrived();
  };
  leaving_.erase(std::remove_if(leaving_.begin(), leaving_.end(), free),
                 leaving_.end());
}

SourceBuffer RowCarrier::TakeNear(int64_t bytes) {
  FreeArrived();
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

cudaError_t RowCarrier::CopyBack(cudaStream_t stream, SourceBuffer* near,
                                 int64_t bytes, char* data,
                                 std::shared_ptr<Arrival>* arriving) {
  const std::lock_guard<std::mutex> lock(mutex_);
  leaving_.reserve(leaving_.size() + 1);
  const auto copy = std::make_shared<CopyOfRows>(device_, std::move(*near));
  leaving_.push_back(copy);
  const cudaError_t begun = copy->Begin(stream, bytes, data, out_);
  // The stream may write there still.
  if (begun != cudaSuccess) (void)cudaStreamSynchronize(stream);
  if (begun == cudaSuccess) *arriving = copy;
  return begun;
}

}  // namespace oneemb::gpu
