// What the tests of the mover share: memory of theirs, and rows on their way.
#pragma once

#include <atomic>
#include <cstring>
#include <iterator>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "store/row_mover.h"
#include "test_store.h"

namespace oneemb {

constexpr int64_t kRowBytes = 24;
constexpr int64_t kMost = 40;

// Memory that is known as its own, with room nearby every now and then.
class TestSource final : public BufferSource {
 public:
  char* Take(int64_t bytes) override {
    char* const data = HeapSource()->Take(bytes);
    const MutexLock lock(mutex_);
    buffers_[data] = bytes;
    return data;
  }
  void Return(char* data, int64_t bytes) override {
    {
      const MutexLock lock(mutex_);
      buffers_.erase(data);
    }
    HeapSource()->Return(data, bytes);
  }
  std::shared_ptr<const char> CopyNear(const char* data,
                                       int64_t bytes) override {
    CHECK(Has(data));
    if (++copies_ % 3 == 0) return nullptr;
    SourceBuffer near = TakeBuffer(this, bytes);
    std::memcpy(near.get(), data, static_cast<size_t>(bytes));
    return near;
  }
  // Buffers that were not returned.
  size_t count() {
    const MutexLock lock(mutex_);
    return buffers_.size();
  }
  bool Has(const char* row) {
    const MutexLock lock(mutex_);
    const auto after = buffers_.upper_bound(row);
    if (after == buffers_.begin()) return false;
    const auto [data, bytes] = *std::prev(after);
    return row < data + bytes;
  }

 private:
  Mutex mutex_;
  std::map<const char*, int64_t> buffers_ ONEEMB_GUARDED_BY(mutex_);
  std::atomic<int> copies_{0};
};

inline AlignedBuffer BufferOf(const std::vector<char>& rows,
                              BufferSource* source = HeapSource()) {
  AlignedBuffer buffer;
  CHECK_OK(buffer.Resize(static_cast<int64_t>(rows.size()), source));
  std::memcpy(buffer.data(), rows.data(), rows.size());
  return buffer;
}

inline Status WriteTo(RowMover* mover, const std::vector<Key>& keys,
                      AlignedBuffer rows,
                      std::shared_ptr<Arrival> arriving = nullptr) {
  ONEEMB_RETURN_IF_ERROR(mover->AwaitRoom(static_cast<int64_t>(keys.size())));
  mover->Write({keys.begin(), keys.end()}, std::move(rows),
               std::move(arriving));
  return {};
}

}  // namespace oneemb
