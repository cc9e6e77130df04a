// Host code at a point of a stream, in one of three ways.
//
// Ask: the stream waits for the host, and the thread that puts it there waits
// for nothing. The stream writes a number where a thread of ours looks, and
// then waits until that thread has written it back. (A host function of CUDA
// would hold up other streams, and copies of arrays that are done.) That thread
// may not call CUDA, nor wait for one that does so for another stream of the
// device (XLA has one): what loads a kernel may hold CUDA's locks until the
// whole device, and so this stream, stands still.
//
// Tell: the stream writes the number and goes on.
//
// Meet: the thread waits until the stream has come there, and all that it has
// asked and told has been heard; then it may use it.
#pragma once

#include <cuda_runtime_api.h>

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>

namespace oneemb::gpu {

// One for each stream that has ever called. Thread-safe.
class StreamCaller {
 public:
  // What a call and the kernels around it tell each other, kBoardBytes of
  // memory that both see.
  static constexpr int64_t kBoardBytes = 256;
  // Questions whose boards are in use at once.
  static constexpr uint32_t kBoards = 1024;

  // What runs on the host.
  using Function = std::function<void(void* board)>;
  // Puts kernels on the stream that write or read a board.
  using BoardStep = std::function<cudaError_t(void* board)>;

  // The one of a stream of the current device; made at its first call.
  static cudaError_t Of(cudaStream_t stream, StreamCaller** caller);

  // Does `before`, then `function` on the host when the stream has come here,
  // then `after`. On an error `function` may not run.
  cudaError_t Ask(const BoardStep& before, Function function,
                  const BoardStep& after);
  // The same without `after`. The function may run at any time from then on.
  cudaError_t Tell(const BoardStep& before, Function function);
  cudaError_t Meet(const BoardStep& before, const Function& function,
                   const BoardStep& after);

 private:
  struct Request {
    uint32_t ticket;
    Function function;
  };

  explicit StreamCaller(cudaStream_t stream) : stream_(stream) {}
  cudaError_t Start();
  void Serve();
  cudaError_t AwaitBoard(uint32_t ticket) const;
  cudaError_t Send(const BoardStep& before, Function function);
  cudaError_t Queue(uint32_t ticket, Function function);
  void* Board(uint32_t ticket) const {
    return boards_ + (ticket % kBoards) * kBoardBytes;
  }

  const cudaStream_t stream_;
  // Memory of the host that does not move.
  char* boards_ = nullptr;
  // Tickets, as the stream and the host count them.
  volatile uint32_t* reached_ = nullptr;
  volatile uint32_t* done_ = nullptr;

  std::mutex calls_;  // held while one is put on the stream
  uint32_t last_ticket_ = 0;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Request> requests_;
};

}  // namespace oneemb::gpu
