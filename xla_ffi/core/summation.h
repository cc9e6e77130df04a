// The two summation orders that fix every bit of a training run.
//
// Over columns: eight lanes, lane j adds the columns c with c % 8 == j from
// left to right, then the lanes are added pairwise in one fixed shape.
//
// Over the gradients of one row (and over rows): blocks of 32 terms, each
// added from left to right, then the block sums likewise, recursively. A block
// can be computed by anybody, so one thread, eight threads and a GPU agree.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace oneemb {

constexpr int kColumnLanes = 8;
constexpr int kSumBlock = 32;
// 32^7 > 2^32 terms.
constexpr int kMaxSumLevels = 7;

// The total of eight lane sums.
ONEEMB_HD float AddLanes(const float* lanes) {
  return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) +
         ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

// Sums term(c) over 0 <= c < n in the order of the eight lanes.
template <class Term>
ONEEMB_HD float SumColumns(int64_t n, const Term& term) {
  float lanes[kColumnLanes] = {};
  int64_t c = 0;
  for (; c + kColumnLanes <= n; c += kColumnLanes) {
    for (int j = 0; j < kColumnLanes; ++j) lanes[j] += term(c + j);
  }
  for (int j = 0; c + j < n; ++j) lanes[j] += term(c + j);
  return AddLanes(lanes);
}

// Sums scalars in blocks of 32: Add() each term in order, then Total().
class BlockSum {
 public:
  ONEEMB_HD void Add(float term) {
    for (int level = 0; level < kMaxSumLevels; ++level) {
      sums_[level] = counts_[level] == 0 ? term : sums_[level] + term;
      if (++counts_[level] < kSumBlock) return;
      term = sums_[level];
      counts_[level] = 0;
    }
  }

  // The sum so far; 0 for no terms.
  ONEEMB_HD float Total() const {
    float carry = 0.0F;
    bool carried = false;
    for (int level = 0; level < kMaxSumLevels; ++level) {
      if (counts_[level] == 0) continue;
      carry = carried ? sums_[level] + carry : sums_[level];
      carried = true;
    }
    return carry;
  }

 private:
  float sums_[kMaxSumLevels] = {};
  int counts_[kMaxSumLevels] = {};
};

}  // namespace oneemb
