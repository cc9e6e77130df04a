// Bytes that are on their way to a buffer.
#pragma once

#include "store/status.h"

namespace oneemb {

// Whoever uses the buffer, or lets go of it, waits first. Thread-safe.
class Arrival {
 public:
  virtual ~Arrival() = default;
  Arrival() = default;
  Arrival(const Arrival&) = delete;
  Arrival& operator=(const Arrival&) = delete;

  // Waits until they are there. On an error they never will be.
  virtual Status Await() = 0;
};

}  // namespace oneemb
