// Rows on their way from a Store.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

namespace oneemb {

// The rows of a batch, where they are: they stay there as long as this does.
struct TakenRows {
  std::vector<uint8_t> found;     // as in Store::Fetch
  std::vector<const char*> rows;  // null but where found[i] is kRowFound
  int64_t prefetched = 0;         // rows that had been read ahead
  bool waited = false;            // for the Store

  std::vector<std::shared_ptr<const void>> held;  // what they are in

  // So many rows, none of which is there yet.
  void Begin(int64_t count, uint8_t not_found) {
    found.assign(static_cast<size_t>(count), not_found);
    rows.assign(static_cast<size_t>(count), nullptr);
  }
  // Lets go of them, and keeps the memory of the lists.
  void Clear() {
    found.clear();
    rows.clear();
    prefetched = 0;
    waited = false;
    held.clear();
  }
};

}  // namespace oneemb
