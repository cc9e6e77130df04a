// Memory that direct transfers can use.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <memory>

#include "store/env.h"
#include "store/pages.h"
#include "store/status.h"

namespace oneemb {

// `value` rounded up, or down, to a multiple of `step`.
constexpr int64_t RoundUp(int64_t value, int64_t step) {
  return (value + step - 1) / step * step;
}
constexpr int64_t RoundDown(int64_t value, int64_t step) {
  return value / step * step;
}

// Bytes aligned to a block. Not cleared. Of large ones the first touch runs at
// several times the speed on huge pages, which are asked for.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;

  // Replaces the memory; on kNoMemory the buffer is empty.
  Status Resize(int64_t bytes) {
    const int64_t align =
        bytes < 2 * kHugePageBytes ? kBlockBytes : kHugePageBytes;
    const int64_t rounded = RoundUp(bytes < 1 ? 1 : bytes, align);
    size_ = 0;
    data_.reset(static_cast<char*>(std::aligned_alloc(
        static_cast<size_t>(align), static_cast<size_t>(rounded))));
    if (data_ == nullptr) {
      return {StatusKind::kNoMemory,
              "no memory for a buffer of " + std::to_string(bytes) + " bytes"};
    }
    if (align == kHugePageBytes) {
      // A refusal costs speed only.
      (void)madvise(data_.get(), static_cast<size_t>(rounded), MADV_HUGEPAGE);
    }
    size_ = bytes;
    return {};
  }

  char* data() { return data_.get(); }
  const char* data() const { return data_.get(); }
  int64_t size() const { return size_; }

 private:
  struct Free {
    void operator()(char* data) const { std::free(data); }
  };
  std::unique_ptr<char, Free> data_;
  int64_t size_ = 0;
};

}  // namespace oneemb
