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
// Tell: the stream writes the number and goes on. Another thread hears it, so
// that no answer waits for that; it may not call CUDA either.
//
// Meet: the thread waits until the stream has come there, and all that it has
// told has been heard; then it may use it.
#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "cuda/call_line.h"

namespace oneemb::gpu {

// One for each stream that has ever called. Thread-safe.
class StreamCaller {
 public:
  // The one of a stream of the current device; made at its first call.
  static cudaError_t Of(cudaStream_t stream, StreamCaller** caller);

  // Does `before`, then `function` on the host when the stream has come here,
  // then `after`. On an error `function` may not run. A question may overtake
  // what was told before unless it is `in_order`.
  cudaError_t Ask(const BoardStep& before, const CallFunction& function,
                  const BoardStep& after, bool in_order);
  // The same without `after`, for what matters only where some of `count` words
  // on the device are not 0: else the stream does not wait.
  cudaError_t AskUnlessZero(const BoardStep& before,
                            const CallFunction& function, const uint32_t* words,
                            int count);
  cudaError_t Meet(const BoardStep& before, const CallFunction& function,
                   const BoardStep& after);
  // For the function of a meeting: memory that the stream needs until it comes
  // here is let go at the next one.
  void Keep(std::shared_ptr<const void> memory) {
    kept_.push_back(std::move(memory));
  }
  // The same without `after`: the function runs some time from then on.
  cudaError_t Tell(const BoardStep& before, const CallFunction& function);

 private:
  explicit StreamCaller(cudaStream_t stream)
      : stream_(stream), asks_(stream), tells_(stream) {}
  cudaError_t Start();

  const cudaStream_t stream_;
  std::mutex calls_;         // held while one is put on the stream
  char* meeting_ = nullptr;  // the board of meetings
  std::vector<std::shared_ptr<const void>> kept_;
  CallLine asks_;
  CallLine tells_;
};

}  // namespace oneemb::gpu
