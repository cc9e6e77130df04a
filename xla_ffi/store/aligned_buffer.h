// Memory that direct transfers can use.
#pragma once

#include <cstdint>
#include <string>

#include "store/buffer_source.h"
#include "store/heap_source.h"
#include "store/status.h"

namespace oneemb {

// `value` rounded up, or down, to a multiple of `step`.
constexpr int64_t RoundUp(int64_t value, int64_t step) {
  return (value + step - 1) / step * step;
}
constexpr int64_t RoundDown(int64_t value, int64_t step) {
  return value / step * step;
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
