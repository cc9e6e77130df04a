// Work on many keys whose data is far away: several in flight at a time.
#pragma once

#include <cstdint>

namespace oneemb {

// How many keys lie between two stages: enough that what one asked for has
// arrived when the next needs it, few enough that it has not been driven out.
constexpr int64_t kPipelineAhead = 8;

// Runs every stage for 0 <= i < n, each in order of i, but with the stages of
// different i interleaved: stage k works on i while stage k + 1 works on
// i - kPipelineAhead. A stage is called as stage(i, &item); Item carries what
// one stage tells the next about an i.
template <class Item, class... Stages>
inline void Pipeline(int64_t n, const Stages&... stages) {
  constexpr int64_t kStages = sizeof...(Stages);
  constexpr int64_t kRing = 32;
  static_assert((kStages - 1) * kPipelineAhead < kRing,
                "an item is not overwritten before its last stage");
  Item ring[kRing];
  for (int64_t i = 0; i < n + (kStages - 1) * kPipelineAhead; ++i) {
    int64_t k = i;
    const auto run = [&](const auto& stage) {
      if (k >= 0 && k < n) stage(k, &ring[k % kRing]);
      k -= kPipelineAhead;
    };
    (run(stages), ...);
  }
}

// Asks for the first lines of `bytes` bytes; the hardware sees by itself where
// long ones go on. Inlined by force: g++ takes a function that only prefetches
// for one without effect, and drops calls of it, lambdas included.
[[gnu::always_inline]] inline void PrefetchRow(const char* row, int64_t bytes) {
  constexpr int64_t kLine = 64;
  constexpr int64_t kMost = 32 * kLine;
  for (int64_t at = 0; at < bytes && at < kMost; at += kLine) {
    __builtin_prefetch(row + at);
  }
}

}  // namespace oneemb
