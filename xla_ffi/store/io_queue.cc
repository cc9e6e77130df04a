#include "store/io_queue.h"

#include <cerrno>
#include <new>

namespace oneemb {
namespace {

// Interruptions and transfers that moved nothing, before we give up.
constexpr int kMaxTries = 16;
// A failed read costs this many tries, so it is made three times: a disk often
// gets a bad sector right at the second attempt. A failed write is made once:
// its caller writes elsewhere.
constexpr int kReadErrorTries = kMaxTries / 2;

// Names the transfer and what befell it; without memory for the words there is
// the kind.
Status Failed(const Transfer& transfer, int error) noexcept {
  try {
    const std::string what = transfer.file->path() + " at byte " +
                             std::to_string(transfer.offset) + ", " +
                             std::to_string(transfer.bytes) + " bytes";
    if (error == 0) {
      return {StatusKind::kCorruption, what + ": the file ends before that"};
    }
    return SystemError(transfer.write ? "write" : "read", what, error);
  } catch (const std::bad_alloc&) {
    return {error == 0 ? StatusKind::kCorruption : StatusKind::kIoError, "I/O",
            error};
  }
}

}  // namespace

Status IoQueue::Open(Env* env, int depth, std::unique_ptr<IoQueue>* queue) {
  std::unique_ptr<IoEngine> engine;
  ONEEMB_RETURN_IF_ERROR(env->NewEngine(depth, &engine));
  queue->reset(new IoQueue(std::move(engine), depth));
  return {};
}

IoQueue::~IoQueue() {
  for (; in_flight_ > 0; --in_flight_) (void)engine_->Next();
}

void IoQueue::Start(Transfer* transfer) {
  transfer->done_ = 0;
  transfer->tries_ = 0;
  transfer->status = {};
  ++in_flight_;
  Continue(transfer);
}

void IoQueue::Continue(Transfer* transfer) {
  transfer->io_ = {transfer->file,
                   transfer->write,
                   transfer->offset + transfer->done_,
                   transfer->data + transfer->done_,
                   transfer->bytes - transfer->done_,
                   0,
                   transfer};
  engine_->Start(&transfer->io_);
}

bool IoQueue::Ended(Transfer* transfer) noexcept {
  const Io& io = transfer->io_;
  if (io.result == io.bytes) return true;
  if (io.result == 0 && !transfer->write) {
    transfer->status = Failed(*transfer, 0);
    return true;
  }
  // A direct transfer can only go on at a multiple of the alignment.
  const int64_t moved =
      io.result > 0 ? io.result / kIoAlignment * kIoAlignment : 0;
  transfer->done_ += moved;
  const bool failed =
      io.result < 0 && io.result != -EINTR && io.result != -EAGAIN;
  if (moved == 0) transfer->tries_ += failed ? kReadErrorTries : 1;
  if (transfer->tries_ <= kMaxTries && !(failed && transfer->write)) {
    return false;
  }
  const int error = io.result < 0 ? static_cast<int>(-io.result) : EIO;
  transfer->status = Failed(*transfer, error);
  return true;
}

Transfer* IoQueue::Finish() {
  for (;;) {
    auto* const transfer = static_cast<Transfer*>(engine_->Next()->user);
    if (Ended(transfer)) {
      --in_flight_;
      return transfer;
    }
    Continue(transfer);
  }
}

Status IoQueue::Run(Transfer* transfer) {
  Start(transfer);
  return Finish()->status;
}

}  // namespace oneemb
