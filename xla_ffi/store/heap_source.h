// Buffers in memory of the C library.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>

#include "store/buffer_source.h"
#include "store/pages.h"

namespace oneemb {

// Of large buffers the first touch runs at several times the speed on huge
// pages, which are asked for.
class HeapBuffers final : public BufferSource {
 public:
  // What Take(bytes) takes.
  static int64_t Rounded(int64_t bytes) {
    const int64_t align = Alignment(bytes);
    return (bytes < 1 ? align : bytes + align - 1) / align * align;
  }

  char* Take(int64_t bytes) override {
    const int64_t align = Alignment(bytes);
    const int64_t rounded = Rounded(bytes);
    auto* const data = static_cast<char*>(std::aligned_alloc(
        static_cast<size_t>(align), static_cast<size_t>(rounded)));
    if (data != nullptr && align == kHugePageBytes) {
      // A refusal costs speed only.
      (void)madvise(data, static_cast<size_t>(rounded), MADV_HUGEPAGE);
    }
    return data;
  }
  void Return(char* data, int64_t /*bytes*/) override { std::free(data); }

 private:
  static int64_t Alignment(int64_t bytes) {
    return bytes < 2 * kHugePageBytes ? kBlockBytes : kHugePageBytes;
  }
};

inline BufferSource* HeapSource() {
  static auto* const heap = new HeapBuffers;  // outlives every thread
  return heap;
}

}  // namespace oneemb
