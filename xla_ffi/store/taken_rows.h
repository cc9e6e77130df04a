// Rows on their way from a Store.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "store/source_vector.h"

namespace oneemb {

// The rows of a batch, where they are.
struct RowList {
  std::vector<uint8_t> found;      // as in Store::Fetch
  SourceVector<const char*> rows;  // null but where found[i] is kRowFound

  // So many rows, none of which is there yet; the list itself in memory from
  // `source`.
  void Begin(int64_t count, uint8_t not_found, BufferSource* source) {
    if (rows.get_allocator().source() != source) {
      rows = SourceVector<const char*>(SourceAllocator<const char*>(source));
    }
    found.assign(static_cast<size_t>(count), not_found);
    rows.assign(static_cast<size_t>(count), nullptr);
  }
};

// A list of rows that stay where they are as long as this does.
struct TakenRows {
  RowList own;
  std::shared_ptr<const RowList> shared;  // in its place, unless it is null
  int64_t absent = 0;                     // rows that are null
  int64_t prefetched = 0;                 // rows that had been read ahead
  bool waited = false;                    // for the Store

  std::vector<std::shared_ptr<const void>> held;  // what they are in

  // The list in memory as near as the rows are; null where it is no nearer.
  std::shared_ptr<const char> near_list;

  const RowList& list() const { return shared == nullptr ? own : *shared; }
  // The rows, for who is going to use them.
  const char* const* rows() const {
    return near_list == nullptr
               ? list().rows.data()
               : reinterpret_cast<const char* const*>(near_list.get());
  }
  bool empty() const { return shared == nullptr && held.empty(); }
  // Lets go of them, and keeps the memory of the lists.
  void Clear() {
    own.found.clear();
    own.rows.clear();
    shared.reset();
    absent = 0;
    prefetched = 0;
    waited = false;
    held.clear();
    near_list.reset();
  }
};

}  // namespace oneemb
