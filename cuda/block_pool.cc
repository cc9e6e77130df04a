#include "cuda/block_pool.h"

#include <algorithm>

namespace oneemb::gpu {
namespace {

// Sizes in use: four between a power of two and the next.
int64_t SizeClass(int64_t bytes) {
  int64_t power = int64_t{16} << 10;
  while (power * 2 <= bytes) power *= 2;
  const int64_t step = power / 4;
  return (std::max<int64_t>(bytes, 1) + step - 1) / step * step;
}

}  // namespace

char* BlockPool::Take(int64_t bytes) {
  const int64_t size = SizeClass(bytes);
  const std::lock_guard<std::mutex> lock(mutex_);
  if (Kept* const kept = FindIdle(size); kept != nullptr) {
    kept->idle = false;
    return kept->block.data;
  }
  blocks_.reserve(blocks_.size() + 1);
  FreeSpare();
  Block block{};
  if (!Make(size, &block)) return nullptr;
  blocks_.push_back({block, false});
  return block.data;
}

void BlockPool::Return(char* data, int64_t /*bytes*/) {
  const std::lock_guard<std::mutex> lock(mutex_);
  for (Kept& kept : blocks_) kept.idle = kept.idle || kept.block.data == data;
}

// The smallest that will do and is not far too large, or null.
BlockPool::Kept* BlockPool::FindIdle(int64_t size) {
  Kept* found = nullptr;
  for (Kept& kept : blocks_) {
    const int64_t bytes = kept.block.bytes;
    if (!kept.idle || bytes < size || bytes > 2 * size) continue;
    if (found == nullptr || bytes < found->block.bytes) found = &kept;
  }
  return found;
}

// Until no more is idle than is in use.
void BlockPool::FreeSpare() {
  int64_t idle = 0;
  int64_t in_use = 0;
  for (const Kept& kept : blocks_) {
    (kept.idle ? idle : in_use) += kept.block.bytes;
  }
  const auto spare = [&](const Kept& kept) {
    if (!kept.idle || idle <= in_use) return false;
    idle -= kept.block.bytes;
    Free(kept.block);
    return true;
  };
  blocks_.erase(std::remove_if(blocks_.begin(), blocks_.end(), spare),
                blocks_.end());
}

}  // namespace oneemb::gpu
