// Rows of one width in memory, numbered, that never move.
#pragma once

#include <cstdint>

#include "store/pages.h"

namespace oneemb {

// Rows lie one after the other, without padding: a row of 64 bytes is one cache
// line, and one of 68 touches two lines wherever it begins. Memory comes in
// chunks, each as large as all before it, so that a row is found without a
// list; pages that no row has used yet are not there yet.
//
// Not thread-safe; const calls may run at the same time as each other.
class RowArena {
 public:
  RowArena(PageSource* pages, int64_t row_bytes);

  int64_t row_bytes() const { return row_bytes_; }
  // Rows there is room for.
  int64_t capacity() const { return capacity_; }
  // Makes room for `rows` rows. False when there is no memory.
  bool Extend(int64_t rows);
  // Memory that the first `rows` rows take when all of them are in use.
  int64_t BytesFor(int64_t rows) const;

  // REQUIRES: 0 <= row < capacity().
  char* Row(uint64_t row) const {
    const int chunk = ChunkOf(row);
    return chunks_[chunk].data() +
           static_cast<int64_t>(row - ChunkBegin(chunk)) * row_bytes_;
  }

  void Clear();

 private:
  static constexpr int kMostChunks = 48;

  int ChunkOf(uint64_t row) const {
    const uint64_t scaled = row >> first_log2_;
    return scaled == 0 ? 0 : 64 - __builtin_clzll(scaled);
  }
  uint64_t ChunkBegin(int chunk) const {
    return chunk == 0 ? 0 : uint64_t{1} << (first_log2_ + chunk - 1);
  }
  int64_t ChunkRows(int chunk) const {
    return int64_t{1} << (first_log2_ + (chunk == 0 ? 0 : chunk - 1));
  }

  PageSource* pages_;
  int64_t row_bytes_;
  int first_log2_ = 0;  // the first chunk has 2^first_log2_ rows
  int64_t capacity_ = 0;
  Pages chunks_[kMostChunks];
};

}  // namespace oneemb
