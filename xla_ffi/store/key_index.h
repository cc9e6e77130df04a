// Where each key of a batch is in it: made once, while somebody waits for it,
// and asked mostly for keys that are not there.
#pragma once

#include <cstdint>
#include <vector>

#include "core/bucket.h"
#include "store/key.h"

namespace oneemb {

// Open addressing, a quarter to a half full. A cell has half of a key's hash
// and its position: that is small, and the keys are where they are.
class KeyIndex {
 public:
  // The keys differ, are fewer than 2^32, and outlive this.
  explicit KeyIndex(KeySpan keys) : keys_(keys) {
    uint64_t num_cells = 2;
    while (num_cells < 2 * static_cast<uint64_t>(keys.size)) num_cells *= 2;
    mask_ = num_cells - 1;
    cells_.resize(num_cells);
    for (int64_t i = 0; i < keys.size; ++i) {
      const uint64_t hash = HashKey(keys[i]);
      uint64_t c = hash & mask_;
      while (cells_[c] != 0) c = (c + 1) & mask_;
      cells_[c] = (hash & ~kPositions) | static_cast<uint64_t>(i + 1);
    }
  }

  // The position of a key, or -1.
  int64_t Find(Key key, uint64_t hash) const {
    for (uint64_t c = hash & mask_; cells_[c] != 0; c = (c + 1) & mask_) {
      if (((cells_[c] ^ hash) & ~kPositions) != 0) continue;
      const auto i = static_cast<int64_t>(cells_[c] & kPositions) - 1;
      if (keys_[i] == key) return i;
    }
    return -1;
  }

 private:
  static constexpr uint64_t kPositions = 0xffffffff;

  const KeySpan keys_;
  uint64_t mask_ = 0;
  std::vector<uint64_t> cells_;  // 0: empty
};

}  // namespace oneemb
