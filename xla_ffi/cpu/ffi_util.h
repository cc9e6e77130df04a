// XLA's thread pool as a Parallel, for the FFI handlers of the CPU.
//
// Only *_ffi.cc files include this: kernels do not know XLA.
#pragma once

#include <cstdint>
#include <functional>

#include "cpu/parallel.h"
#include "ffi/decode_ffi.h"
#include "xla/ffi/api/ffi.h"

namespace oneemb {

// How many threads a kernel splits its work for; 0 means XLA's own number.
// Results do not depend on it.
void SetNumThreads(int64_t num_threads);

// XLA's thread pool, for one call of a handler.
class FfiParallel final : public Parallel {
 public:
  explicit FfiParallel(xla::ffi::ThreadPool pool);
  int64_t num_threads() const override { return num_threads_; }
  void Run(int64_t n, const std::function<void(int64_t)>& task) override;

 private:
  xla::ffi::ThreadPool pool_;
  int64_t num_threads_;
};

}  // namespace oneemb
