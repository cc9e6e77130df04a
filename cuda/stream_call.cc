#include "cuda/stream_call.h"

#include <cuda.h>
#include <sys/prctl.h>

#include <atomic>
#include <chrono>
#include <map>
#include <new>
#include <thread>
#include <utility>

#include "cuda/launch.h"

namespace oneemb::gpu {
namespace {

// Looks at a word this often before it sleeps between two looks.
constexpr int kSpins = 4000;
constexpr std::chrono::microseconds kNap{20};

using StreamValue32 = CUresult (*)(CUstream, CUdeviceptr, cuuint32_t,
                                   unsigned int);

// The driver's functions; this library is not linked with it.
struct Driver {
  StreamValue32 write = nullptr;
  StreamValue32 wait = nullptr;
};

cudaError_t Find(const char* name, StreamValue32* function) {
  void* found = nullptr;
  cudaDriverEntryPointQueryResult result{};
  ONEEMB_RETURN_IF_CUDA_ERROR(cudaGetDriverEntryPointByVersion(
      name, &found, 12000, cudaEnableDefault, &result));
  *function = reinterpret_cast<StreamValue32>(found);
  return found == nullptr ? cudaErrorNotSupported : cudaSuccess;
}

cudaError_t GetDriver(Driver* driver) {
  ONEEMB_RETURN_IF_CUDA_ERROR(Find("cuStreamWriteValue32", &driver->write));
  return Find("cuStreamWaitValue32", &driver->wait);
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

cudaError_t AllocatePinned(int64_t size, char** out) {
  void* data = nullptr;
  ONEEMB_RETURN_IF_CUDA_ERROR(
      cudaHostAlloc(&data, static_cast<size_t>(size),
                    cudaHostAllocPortable | cudaHostAllocMapped));
  *out = static_cast<char*>(data);
  return cudaSuccess;
}

}  // namespace

// Callers stay until the process ends, whose threads end with it: what they
// serve may be on a stream until then.
cudaError_t StreamCaller::Of(cudaStream_t stream, StreamCaller** caller) {
  using Callers = std::map<std::pair<int, cudaStream_t>, StreamCaller*>;
  static auto* const callers = new Callers;
  static std::mutex mutex;
  int device = 0;
  ONEEMB_RETURN_IF_CUDA_ERROR(cudaGetDevice(&device));
  const std::lock_guard<std::mutex> lock(mutex);
  StreamCaller*& found = (*callers)[{device, stream}];
  if (found == nullptr) {
    std::unique_ptr<StreamCaller> made(new StreamCaller(stream));
    ONEEMB_RETURN_IF_CUDA_ERROR(made->Start());
    found = made.release();
  }
  *caller = found;
  return cudaSuccess;
}

cudaError_t StreamCaller::Start() {
  Driver driver;
  ONEEMB_RETURN_IF_CUDA_ERROR(GetDriver(&driver));
  // Boards for questions, one for meetings, and the two counts.
  ONEEMB_RETURN_IF_CUDA_ERROR(
      AllocatePinned((kBoards + 3) * kBoardBytes, &boards_));
  char* const counts = boards_ + (kBoards + 1) * kBoardBytes;
  reached_ = reinterpret_cast<volatile uint32_t*>(counts);
  done_ = reinterpret_cast<volatile uint32_t*>(counts + kBoardBytes);
  *reached_ = 0;
  *done_ = 0;
  std::thread([this] { Serve(); }).detach();
  return cudaSuccess;
}

void StreamCaller::Serve() {
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
    request.function(Board(request.ticket));
    std::atomic_thread_fence(std::memory_order_release);
    *done_ = request.ticket;
  }
}

// A board is free again when it was heard, and the stream has come to a call
// after its own.
cudaError_t StreamCaller::AwaitBoard(uint32_t ticket) const {
  while (!HasReached(*reached_, ticket - kBoards + 1) ||
         !HasReached(*done_, ticket - kBoards)) {
    // A stream that has failed comes nowhere any more.
    const cudaError_t error = cudaStreamQuery(stream_);
    if (error != cudaSuccess && error != cudaErrorNotReady) return error;
    std::this_thread::sleep_for(kNap);
  }
  return cudaSuccess;
}

cudaError_t StreamCaller::Queue(uint32_t ticket, Function function) {
  try {
    const std::lock_guard<std::mutex> lock(mutex_);
    requests_.push_back({ticket, std::move(function)});
  } catch (const std::bad_alloc&) {
    return cudaErrorMemoryAllocation;
  }
  changed_.notify_one();
  return cudaSuccess;
}

// Puts `before` and the next ticket on the stream; calls_ is held.
cudaError_t StreamCaller::Send(const BoardStep& before, Function function) {
  Driver driver;
  ONEEMB_RETURN_IF_CUDA_ERROR(GetDriver(&driver));
  const uint32_t ticket = last_ticket_ + 1;
  ONEEMB_RETURN_IF_CUDA_ERROR(AwaitBoard(ticket));
  ONEEMB_RETURN_IF_CUDA_ERROR(before(Board(ticket)));
  // Before the stream asks: a question that nobody answers would stop it.
  ONEEMB_RETURN_IF_CUDA_ERROR(Queue(ticket, std::move(function)));
  if (driver.write(static_cast<CUstream>(stream_), DeviceAddress(reached_),
                   ticket, CU_STREAM_WRITE_VALUE_DEFAULT) != CUDA_SUCCESS) {
    return cudaErrorNotSupported;
  }
  last_ticket_ = ticket;
  return cudaSuccess;
}

cudaError_t StreamCaller::Ask(const BoardStep& before, Function function,
                              const BoardStep& after) {
  Driver driver;
  ONEEMB_RETURN_IF_CUDA_ERROR(GetDriver(&driver));
  const std::lock_guard<std::mutex> lock(calls_);
  ONEEMB_RETURN_IF_CUDA_ERROR(Send(before, std::move(function)));
  if (driver.wait(static_cast<CUstream>(stream_), DeviceAddress(done_),
                  last_ticket_, CU_STREAM_WAIT_VALUE_GEQ) != CUDA_SUCCESS) {
    return cudaErrorNotSupported;
  }
  return after(Board(last_ticket_));
}

cudaError_t StreamCaller::Tell(const BoardStep& before, Function function) {
  const std::lock_guard<std::mutex> lock(calls_);
  return Send(before, std::move(function));
}

cudaError_t StreamCaller::Meet(const BoardStep& before,
                               const Function& function,
                               const BoardStep& after) {
  const std::lock_guard<std::mutex> lock(calls_);
  void* const board = boards_ + kBoards * kBoardBytes;
  ONEEMB_RETURN_IF_CUDA_ERROR(before(board));
  ONEEMB_RETURN_IF_CUDA_ERROR(cudaStreamSynchronize(stream_));
  Await(done_, last_ticket_);
  function(board);
  return after(board);
}

}  // namespace oneemb::gpu
