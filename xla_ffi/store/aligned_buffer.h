// Memory that direct transfers can use.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <string>

#include "store/buffer_source.h"
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

// Memory of the C library. Of large buffers the first touch runs at several
// times the speed on huge pages, which are asked for.
class HeapBuffers final : public BufferSource {
 public:
  char* Take(int64_t bytes) override {
    const int64_t align =
        bytes < 2 * kHugePageBytes ? kBlockBytes : kHugePageBytes;
    const int64_t rounded = RoundUp(bytes < 1 ? 1 : bytes, align);
    auto* const data = static_cast<char*>(std::aligned_alloc(
        static_cast<size_t>(align), static_cast<size_t>(rounded)));
    if (data != nullptr && align == kHugePageBytes) {
      // A refusal costs speed only.
      (void)madvise(data, static_cast<size_t>(rounded), MADV_HUGEPAGE);
    }
    return data;
  }
  void Return(char* data, int64_t /*bytes*/) override { std::free(data); }
};

inline BufferSource* HeapSource() {
  static auto* const heap = new HeapBuffers;  // outlives every thread
  return heap;
}

// Bytes aligned to a block. Not cleared.
class AlignedBuffer {
 public:
  AlignedBuffer() = default;

  // Replaces the memory; on kNoMemory the buffer is empty.
  Status Resize(int64_t bytes, BufferSource* source = HeapSource()) {
    data_.reset();
    data_ = TakeBuffer(source, bytes);
    if (data_ == nullptr) {
      return {StatusKind::kNoMemory,
              "no memory for a buffer of " + std::to_string(bytes) + " bytes"};
    }
    return {};
  }

  char* data() { return data_.get(); }
  const char* data() const { return data_.get(); }
  int64_t size() const {
    return data_ == nullptr ? 0 : data_.get_deleter().bytes;
  }
  // Of the memory, if there is some.
  BufferSource* source() const { return data_.get_deleter().source; }

 private:
  SourceBuffer data_{nullptr, {nullptr, 0}};
};

}  // namespace oneemb
