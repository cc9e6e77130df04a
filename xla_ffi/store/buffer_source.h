// Where the memory of buffers comes from.
#pragma once

#include <cstdint>
#include <memory>

namespace oneemb {

// Blocks of formats and buffers: the page of the systems we know.
constexpr int64_t kBlockBytes = 4096;

// Outlives its buffers. Thread-safe.
class BufferSource {
 public:
  virtual ~BufferSource() = default;
  BufferSource() = default;
  BufferSource(const BufferSource&) = delete;
  BufferSource& operator=(const BufferSource&) = delete;

  // Aligned to a block and not cleared; null when there is no memory left.
  virtual char* Take(int64_t bytes) = 0;
  // Takes back what Take(bytes) gave.
  virtual void Return(char* data, int64_t bytes) = 0;

  // A copy of bytes in one of its buffers that is nearer to who is going to
  // read them, made before it returns; null where there is no such place.
  virtual std::shared_ptr<const char> CopyNear(const char* /*data*/,
                                               int64_t /*bytes*/) {
    return nullptr;
  }
};

struct ReturnBuffer {
  BufferSource* source;
  int64_t bytes;
  void operator()(char* data) const { source->Return(data, bytes); }
};
// Goes back to where it came from.
using SourceBuffer = std::unique_ptr<char, ReturnBuffer>;

inline SourceBuffer TakeBuffer(BufferSource* source, int64_t bytes) {
  return {source->Take(bytes), {source, bytes}};
}

}  // namespace oneemb
