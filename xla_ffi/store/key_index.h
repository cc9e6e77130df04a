// Where each key of a batch is in it: made once, searched often.
#pragma once

#include <cstdint>
#include <vector>

#include "core/bucket.h"
#include "store/key.h"

namespace oneemb {

class KeyIndex {
 public:
  // The keys differ.
  explicit KeyIndex(KeySpan keys)
      : buckets_(static_cast<size_t>(NumBuckets(keys.size))) {
    const IndexView index = View();
    for (int64_t i = 0; i < keys.size; ++i) {
      InsertKey(index, keys[i], HashKey(keys[i]), static_cast<int32_t>(i));
    }
  }

  // The position of a key, or -1.
  int64_t Find(Key key, uint64_t hash) const {
    return FindSlot(View(), key, hash);
  }

 private:
  IndexView View() const {
    return {const_cast<Bucket*>(buckets_.data()),
            static_cast<int64_t>(buckets_.size())};
  }

  std::vector<Bucket> buckets_;
};

}  // namespace oneemb
