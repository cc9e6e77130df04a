// Keys of a batch and where each of them is. Most are asked for in the order in
// which they came: then nobody needs an index.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>

#include "store/key_index.h"
#include "store/source_vector.h"

namespace oneemb {

class BatchKeys {
 public:
  explicit BatchKeys(SourceVector<Key> keys) : keys_(std::move(keys)) {}

  int64_t size() const { return static_cast<int64_t>(keys_.size()); }
  KeySpan span() const { return {keys_.data(), size()}; }

  // The position of a key, or -1; likely to be `guess`. Thread-safe.
  int64_t Find(Key key, int64_t guess) const {
    if (guess < size() && keys_[static_cast<size_t>(guess)] == key) {
      return guess;
    }
    MakeIndex();
    return index_->Find(key, HashKey(key));
  }
  // What Find needs where guesses fail, unless it is there. May throw.
  void MakeIndex() const {
    std::call_once(indexed_,
                   [this] { index_ = std::make_unique<KeyIndex>(span()); });
  }

 private:
  const SourceVector<Key> keys_;
  mutable std::once_flag indexed_;
  mutable std::unique_ptr<const KeyIndex> index_;
};

}  // namespace oneemb
