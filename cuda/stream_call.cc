#include "cuda/stream_call.h"

#include <map>
#include <utility>

#include "cuda/launch.h"

namespace oneemb::gpu {

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
    // If it cannot start all of its threads, those that it has go on as well.
    auto* const made = new StreamCaller(stream);
    ONEEMB_RETURN_IF_CUDA_ERROR(made->Start());
    found = made;
  }
  *caller = found;
  return cudaSuccess;
}

cudaError_t StreamCaller::Start() {
  ONEEMB_RETURN_IF_CUDA_ERROR(AllocateBoards(1, &meeting_));
  ONEEMB_RETURN_IF_CUDA_ERROR(asks_.Start());
  return tells_.Start();
}

cudaError_t StreamCaller::Ask(const BoardStep& before,
                              const CallFunction& function,
                              const BoardStep& after, bool in_order) {
  const std::lock_guard<std::mutex> lock(calls_);
  const uint32_t told = tells_.last_ticket();
  const auto answer = [this, in_order, told, function](void* board) {
    if (in_order) tells_.AwaitCalls(told);
    function(board);
  };
  void* board = nullptr;
  ONEEMB_RETURN_IF_CUDA_ERROR(asks_.Send(before, answer, &board));
  ONEEMB_RETURN_IF_CUDA_ERROR(asks_.HoldStream());
  return after(board);
}

cudaError_t StreamCaller::AskUnlessZero(const BoardStep& before,
                                        const CallFunction& function,
                                        const uint32_t* words, int count) {
  const std::lock_guard<std::mutex> lock(calls_);
  void* board = nullptr;
  ONEEMB_RETURN_IF_CUDA_ERROR(asks_.Send(before, function, &board));
  return asks_.HoldStreamUnlessZero(words, count);
}

cudaError_t StreamCaller::Tell(const BoardStep& before,
                               const CallFunction& function) {
  const std::lock_guard<std::mutex> lock(calls_);
  void* board = nullptr;
  return tells_.Send(before, function, &board);
}

// What the stream waited to be told was answered before it came here.
cudaError_t StreamCaller::Meet(const BoardStep& before,
                               const CallFunction& function,
                               const BoardStep& after) {
  const std::lock_guard<std::mutex> lock(calls_);
  const cudaError_t begun = before(meeting_);
  // Though it has failed: its kernels write to memory that the caller lets go.
  const cudaError_t came = cudaStreamSynchronize(stream_);
  ONEEMB_RETURN_IF_CUDA_ERROR(begun);
  ONEEMB_RETURN_IF_CUDA_ERROR(came);
  tells_.AwaitCalls(tells_.last_ticket());
  // It takes time to free it, which the stream is not to wait for.
  const std::vector<std::shared_ptr<const void>> done = std::move(kept_);
  kept_.clear();
  function(meeting_);
  return after(meeting_);
}

}  // namespace oneemb::gpu
