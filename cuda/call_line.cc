#include "cuda/call_line.h"

#include <sys/prctl.h>

#include <atomic>
#include <chrono>
#include <new>
#include <system_error>
#include <thread>
#include <utility>

#include "cuda/driver.h"
#include "cuda/hold.h"
#include "cuda/launch.h"

namespace oneemb::gpu {
namespace {

// Looks at a word this often before it sleeps between two looks.
constexpr int kSpins = 4000;
constexpr std::chrono::microseconds kNap{20};

using StreamValue32 = CUresult(CUstream, CUdeviceptr, cuuint32_t, unsigned);

StreamValue32* WriteValue() {
  static const auto write = FindInDriver<StreamValue32>("cuStreamWriteValue32");
  return write;
}

StreamValue32* WaitValue() {
  static const auto wait = FindInDriver<StreamValue32>("cuStreamWaitValue32");
  return wait;
}

CUdeviceptr DeviceAddress(volatile uint32_t* word) {
  return reinterpret_cast<CUdeviceptr>(word);
}

// Whether a count, which may wrap around, has come to `ticket`.
bool HasReached(uint32_t count, uint32_t ticket) {
  return static_cast<int32_t>(count - ticket) >= 0;
}

void Await(volatile uint32_t* word, uint32_t ticket) {
  for (int spin = 0; !HasReached(*word, ticket); ++spin) {
    if (spin >= kSpins) std::this_thread::sleep_for(kNap);
  }
  std::atomic_thread_fence(std::memory_order_acquire);
}

}  // namespace

cudaError_t AllocateBoards(int64_t count, char** boards) {
  void* data = nullptr;
  ONEEMB_RETURN_IF_CUDA_ERROR(
      cudaHostAlloc(&data, static_cast<size_t>(count * kBoardBytes),
                    cudaHostAllocPortable | cudaHostAllocMapped));
  *boards = static_cast<char*>(data);
  return cudaSuccess;
}

cudaError_t CallLine::Start() {
  if (WriteValue() == nullptr || WaitValue() == nullptr) {
    return cudaErrorNotSupported;
  }
  // The two counts have boards to themselves.
  ONEEMB_RETURN_IF_CUDA_ERROR(AllocateBoards(kBoards + 2, &boards_));
  char* const counts = boards_ + kBoards * kBoardBytes;
  reached_ = reinterpret_cast<volatile uint32_t*>(counts);
  done_ = reinterpret_cast<volatile uint32_t*>(counts + kBoardBytes);
  *reached_ = 0;
  *done_ = 0;
  try {
    std::thread([this] { Serve(); }).detach();
  } catch (const std::system_error&) {
    return cudaErrorOperatingSystem;
  }
  return cudaSuccess;
}

void CallLine::Serve() {
  // Or a nap takes 50 microseconds more than it is meant to.
  (void)prctl(PR_SET_TIMERSLACK, 1UL);
  while (true) {
    Request request;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      changed_.wait(lock, [this] { return !requests_.empty(); });
      request = std::move(requests_.front());
      requests_.pop_front();
    }
    Await(reached_, request.ticket);
    request.function(boards_ + request.ticket % kBoards * kBoardBytes);
    std::atomic_thread_fence(std::memory_order_release);
    *done_ = request.ticket;
  }
}

// A board is free again when it was heard, and the stream has come to a call
// after its own.
cudaError_t CallLine::AwaitBoard(uint32_t ticket) const {
  while (!HasReached(*reached_, ticket - kBoards + 1) ||
         !HasReached(*done_, ticket - kBoards)) {
    // A stream that has failed comes nowhere any more.
    const cudaError_t error = NotReadyAside(cudaStreamQuery(stream_));
    if (error != cudaSuccess && error != cudaErrorNotReady) return error;
    std::this_thread::sleep_for(kNap);
  }
  return cudaSuccess;
}

cudaError_t CallLine::Queue(uint32_t ticket, const CallFunction& function) {
  try {
    const std::lock_guard<std::mutex> lock(mutex_);
    requests_.push_back({ticket, function});
  } catch (const std::bad_alloc&) {
    return cudaErrorMemoryAllocation;
  }
  changed_.notify_one();
  return cudaSuccess;
}

cudaError_t CallLine::Send(const BoardStep& before,
                           const CallFunction& function, void** board) {
  const uint32_t ticket = last_ticket_ + 1;
  ONEEMB_RETURN_IF_CUDA_ERROR(AwaitBoard(ticket));
  *board = boards_ + ticket % kBoards * kBoardBytes;
  cudaError_t error = before(*board);
  // Before the stream asks: a question that nobody answers would stop it.
  if (error == cudaSuccess) error = Queue(ticket, function);
  if (error != cudaSuccess) {
    // What the function has is not to go while `before` may write to it.
    (void)cudaStreamSynchronize(stream_);
    return error;
  }
  if (WriteValue()(static_cast<CUstream>(stream_), DeviceAddress(reached_),
                   ticket, CU_STREAM_WRITE_VALUE_DEFAULT) != CUDA_SUCCESS) {
    return cudaErrorNotSupported;
  }
  last_ticket_ = ticket;
  return cudaSuccess;
}

cudaError_t CallLine::HoldStream() {
  const CUresult result =
      WaitValue()(static_cast<CUstream>(stream_), DeviceAddress(done_),
                  last_ticket_, CU_STREAM_WAIT_VALUE_GEQ);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorNotSupported;
}

cudaError_t CallLine::HoldStreamUnlessZero(const uint32_t* words, int count) {
  return gpu::HoldStreamUnlessZero(stream_, words, count, done_, last_ticket_);
}

void CallLine::AwaitCalls(uint32_t ticket) const { Await(done_, ticket); }

}  // namespace oneemb::gpu
