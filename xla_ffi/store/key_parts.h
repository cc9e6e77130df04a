// The keys of a batch, those of one part of the index after those of another.
//
// A part's lines are looked at together, so that the processor finds them, and
// the pages that they are on, in its caches; and parts can be worked on one at
// a time, or by several threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "store/key.h"
#include "store/row_index.h"

namespace oneemb {

class KeyParts {
 public:
  static constexpr int64_t kCount = RowIndex::kNumParts;

  // 25 bytes a key. Throws std::bad_alloc.
  explicit KeyParts(KeySpan keys)
      : keys_(static_cast<size_t>(keys.size)),
        positions_(static_cast<size_t>(keys.size)) {
    std::vector<uint8_t> part_of(static_cast<size_t>(keys.size));
    for (int64_t i = 0; i < keys.size; ++i) {
      const int part = RowIndex::PartOf(keys[i]);
      part_of[static_cast<size_t>(i)] = static_cast<uint8_t>(part);
      ++begin_[part + 1];
    }
    for (int64_t p = 0; p < kCount; ++p) begin_[p + 1] += begin_[p];
    int64_t next[kCount];
    std::copy(begin_, begin_ + kCount, next);
    for (int64_t i = 0; i < keys.size; ++i) {
      const auto at =
          static_cast<size_t>(next[part_of[static_cast<size_t>(i)]]++);
      keys_[at] = keys[i];
      positions_[at] = i;
    }
  }

  // All keys, by part, those of one part in the order of the batch.
  KeySpan keys() const {
    return {keys_.data(), static_cast<int64_t>(keys_.size())};
  }
  // Where in the batch key i of keys() was.
  int64_t Position(int64_t i) const {
    return positions_[static_cast<size_t>(i)];
  }
  // Part p is [begin(p), begin(p + 1)) of keys().
  int64_t begin(int64_t p) const { return begin_[p]; }
  // The keys of parts `first` to `last` - 1.
  KeySpan Between(int64_t first, int64_t last) const {
    return keys().Slice(begin_[first], begin_[last] - begin_[first]);
  }

 private:
  std::vector<Key> keys_;
  std::vector<int64_t> positions_;
  int64_t begin_[kCount + 1] = {};
};

}  // namespace oneemb
