#include "store/row_arena.h"

#include <algorithm>

namespace oneemb {
namespace {

constexpr int64_t kFirstChunkBytes = 64 << 10;
constexpr int64_t kPage = 4096;

}  // namespace

RowArena::RowArena(PageSource* pages, int64_t row_bytes)
    : pages_(pages), row_bytes_(row_bytes) {
  while ((row_bytes << first_log2_) < kFirstChunkBytes) ++first_log2_;
}

bool RowArena::Extend(int64_t rows) {
  while (capacity_ < rows) {
    const int chunk =
        capacity_ == 0 ? 0 : ChunkOf(static_cast<uint64_t>(capacity_));
    if (chunk == kMostChunks) return false;
    chunks_[chunk] = Pages::Map(pages_, ChunkRows(chunk) * row_bytes_);
    if (chunks_[chunk].data() == nullptr) return false;
    capacity_ += ChunkRows(chunk);
  }
  return true;
}

// A page is there when one of its bytes has been written.
int64_t RowArena::BytesFor(int64_t rows) const {
  int64_t total = 0;
  for (int chunk = 0; chunk < kMostChunks; ++chunk) {
    const int64_t left = rows - static_cast<int64_t>(ChunkBegin(chunk));
    if (left <= 0) break;
    const int64_t whole = Pages::Rounded(ChunkRows(chunk) * row_bytes_);
    const int64_t page = whole >= kHugePageBytes ? kHugePageBytes : kPage;
    const int64_t used = left * row_bytes_;
    total += std::min(whole, (used + page - 1) / page * page);
  }
  return total;
}

void RowArena::Clear() {
  for (Pages& chunk : chunks_) chunk = Pages();
  capacity_ = 0;
}

}  // namespace oneemb
