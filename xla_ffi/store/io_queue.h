// Reads and writes that are done in full or not at all: what is short goes on,
// what was interrupted starts again, a failed read gets a second chance.
#pragma once

#include <cstdint>
#include <memory>

#include "store/env.h"

namespace oneemb {

struct Transfer {
  File* file = nullptr;
  bool write = false;
  int64_t offset = 0;
  char* data = nullptr;
  int64_t bytes = 0;
  Status status;     // set when it is finished
  int64_t user = 0;  // the caller's own

 private:
  friend class IoQueue;
  Io io_;
  int64_t done_ = 0;
  int tries_ = 0;
};

// Transfers in flight, at most `depth` of them. For one thread at a time. The
// destructor waits for those that nobody has finished: their memory must live
// until then.
class IoQueue {
 public:
  static Status Open(Env* env, int depth, std::unique_ptr<IoQueue>* queue);
  ~IoQueue();
  IoQueue(const IoQueue&) = delete;
  IoQueue& operator=(const IoQueue&) = delete;

  int depth() const { return depth_; }
  int in_flight() const { return in_flight_; }
  bool full() const { return in_flight_ == depth_; }

  // REQUIRES: not full(). The transfer belongs to the queue until finished.
  void Start(Transfer* transfer);
  // Waits for any transfer to end. REQUIRES: in_flight() > 0.
  Transfer* Finish();
  // Starts one transfer and waits for it. REQUIRES: in_flight() == 0.
  Status Run(Transfer* transfer);

 private:
  IoQueue(std::unique_ptr<IoEngine> engine, int depth)
      : engine_(std::move(engine)), depth_(depth) {}

  void Continue(Transfer* transfer);
  // Whether the transfer has ended, with its status set.
  bool Ended(Transfer* transfer) noexcept;

  const std::unique_ptr<IoEngine> engine_;
  const int depth_;
  int in_flight_ = 0;
};

}  // namespace oneemb
