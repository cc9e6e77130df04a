// Calls of the host in the order in which a stream comes to them, done by one
// thread.
#pragma once

#include <cuda_runtime_api.h>

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>

namespace oneemb::gpu {

// What runs on the host.
using CallFunction = std::function<void(void* board)>;
// Puts kernels on the stream that write or read a board.
using BoardStep = std::function<cudaError_t(void* board)>;

// Bytes of memory that a call and the kernels around it both see.
constexpr int64_t kBoardBytes = 256;

// Of one stream, which stays until the process ends.
class CallLine {
 public:
  explicit CallLine(cudaStream_t stream) : stream_(stream) {}
  cudaError_t Start();

  // These come from one thread at a time.

  // Puts `before` on the stream, and a call that the thread does when the
  // stream has come there. Gives the call's board.
  cudaError_t Send(const BoardStep& before, const CallFunction& function,
                   void** board);
  // The stream waits until all calls are done.
  cudaError_t HoldStream();
  // The same unless all of some words on the device are 0 by then.
  cudaError_t HoldStreamUnlessZero(const uint32_t* words, int count);
  // A thread waits until the calls up to a ticket are done.
  void AwaitCalls(uint32_t ticket) const;
  uint32_t last_ticket() const { return last_ticket_; }

 private:
  // Boards in use at once.
  static constexpr uint32_t kBoards = 1024;

  struct Request {
    uint32_t ticket;
    CallFunction function;
  };

  void Serve();
  cudaError_t AwaitBoard(uint32_t ticket) const;
  cudaError_t Queue(uint32_t ticket, const CallFunction& function);

  const cudaStream_t stream_;
  char* boards_ = nullptr;  // memory of the host that does not move
  // Tickets of calls, as the stream and the thread count them.
  volatile uint32_t* reached_ = nullptr;
  volatile uint32_t* done_ = nullptr;
  uint32_t last_ticket_ = 0;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<Request> requests_;
};

// Memory of the host that does not move, and that the device sees as well.
cudaError_t AllocateBoards(int64_t count, char** boards);

}  // namespace oneemb::gpu
