// What the CPU handlers share, besides what they share with those of CUDA:
// XLA's thread pool as a Parallel, and how a call ends.
//
// Only *_ffi.cc files include this: kernels do not know XLA.
#pragma once

#include <cstdint>
#include <functional>
#include <string>

#include "cpu/parallel.h"
#include "ffi/binding_ffi.h"
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

// The end of a call that had the memory it needed, or not.
inline xla::ffi::Error ToFfi(const char* call, bool had_memory) {
  if (had_memory) return xla::ffi::Error::Success();
  return xla::ffi::Error(xla::ffi::ErrorCode::kResourceExhausted,
                         std::string(call) + ": no memory for scratch space");
}

}  // namespace oneemb
