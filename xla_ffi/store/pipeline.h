// Work on many keys whose data is far away: several in flight at a time.
#pragma once

#include <cstdint>

namespace oneemb {

// How many keys lie between two stages: enough that what one asked for has
// arrived when the next needs it, few enough that it has not been driven out.
constexpr int64_t kPipelineAhead = 16;

// Runs first(i, &item), then second(i, &item), third and fourth for every
// 0 <= i < n, each in order of i, but with the stages of different i
// interleaved: a stage asks the cache for what the next stage will read. Item
// carries what one stage tells the next about an i.
template <class Item, class First, class Second, class Third, class Fourth>
inline void Pipeline(int64_t n, const First& first, const Second& second,
                     const Third& third, const Fourth& fourth) {
  constexpr int64_t kRing = 4 * kPipelineAhead;
  Item ring[kRing];
  for (int64_t i = 0; i < n + 3 * kPipelineAhead; ++i) {
    if (i < n) first(i, &ring[i % kRing]);
    if (const int64_t k = i - kPipelineAhead; k >= 0 && k < n) {
      second(k, &ring[k % kRing]);
    }
    if (const int64_t k = i - 2 * kPipelineAhead; k >= 0 && k < n) {
      third(k, &ring[k % kRing]);
    }
    if (const int64_t k = i - 3 * kPipelineAhead; k >= 0) {
      fourth(k, &ring[k % kRing]);
    }
  }
}

// Asks for the first lines of `bytes` bytes; the hardware sees by itself where
// long ones go on.
inline void PrefetchRow(const char* row, int64_t bytes) {
  constexpr int64_t kLine = 64;
  constexpr int64_t kMost = 8 * kLine;
  for (int64_t at = 0; at < bytes && at < kMost; at += kLine) {
    __builtin_prefetch(row + at);
  }
}

}  // namespace oneemb
