// What the tests of the cache share.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "check.h"
#include "store/host_cache.h"

namespace oneemb {

using Keys = std::vector<Key>;

constexpr int64_t kWidth = 24;

inline int64_t Size(const Keys& keys) {
  return static_cast<int64_t>(keys.size());
}

// A cache of about `rows` rows.
inline std::unique_ptr<HostCache> OpenCache(
    int64_t rows, int64_t width = kWidth,
    PageSource* pages = PageSource::System()) {
  std::unique_ptr<HostCache> cache;
  // Small arrays take whole lines and pages: try until there is room enough.
  for (int64_t budget = rows * (width + 31);; budget += 64) {
    const Status status = HostCache::Open({width, budget}, &cache, pages);
    if (status.ok() && cache->capacity() >= rows) return cache;
  }
}

inline std::string Peek(const HostCache& cache, Key key) {
  std::string row(kWidth, '\0');
  uint8_t found = 0;
  cache.Peek(&key, 1, row.data(), &found);
  return found != 0 ? row : "";
}

}  // namespace oneemb
