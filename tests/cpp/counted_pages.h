// A PageSource that counts, and fails when told to.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <map>
#include <vector>

#include "store/pages.h"

namespace oneemb {

// For one thread at a time.
class CountedPages final : public PageSource {
 public:
  void* Map(int64_t bytes) override {
    if (allowed_ == 0) return nullptr;
    if (allowed_ > 0) --allowed_;
    void* const data = PageSource::System()->Map(bytes);
    if (data != nullptr) maps_[data] = bytes;
    return data;
  }

  void Unmap(void* data, int64_t bytes) override {
    maps_.erase(data);
    PageSource::System()->Unmap(data, bytes);
  }

  // The next `calls` calls of Map succeed, those after them fail; -1: never.
  void FailAfter(int64_t calls) { allowed_ = calls; }

  int64_t num_maps() const { return static_cast<int64_t>(maps_.size()); }

  // Memory that really is there: what lies in malloc's arena whole, of the rest
  // the pages that somebody has touched.
  int64_t ResidentBytes() const {
    constexpr int64_t kPage = 4096;
    int64_t total = 0;
    for (const auto& [data, bytes] : maps_) {
      if (reinterpret_cast<uintptr_t>(data) % kPage != 0 ||
          bytes % kPage != 0) {
        total += bytes;
        continue;
      }
      std::vector<unsigned char> resident(static_cast<size_t>(bytes / kPage));
      if (mincore(data, static_cast<size_t>(bytes), resident.data()) != 0) {
        total += bytes;
        continue;
      }
      for (const unsigned char page : resident) {
        total += (page & 1) != 0 ? kPage : 0;
      }
    }
    return total;
  }

 private:
  std::map<void*, int64_t> maps_;
  int64_t allowed_ = -1;
};

}  // namespace oneemb
