#include "cuda/block_pool.h"

#include <algorithm>
#include <new>

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
  std::unique_lock<std::mutex> lock(mutex_);
  if (Kept* const kept = FindIdle(size); kept != nullptr) {
    kept->idle = false;
    return kept->block.data;
  }
  const std::vector<Block> spare = TakeSpare(size);
  lock.unlock();
  for (const Block& block : spare) Free(block);
  Block block{};
  if (!Make(size, &block)) return nullptr;
  lock.lock();
  try {
    blocks_.push_back({block, false});
  } catch (const std::bad_alloc&) {
    lock.unlock();
    Free(block);
    return nullptr;
  }
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

// What is idle beyond twice what was in use at once, with a block that is going
// to be: programs take blocks of several sizes in turns.
std::vector<BlockPool::Block> BlockPool::TakeSpare(int64_t size) {
  int64_t idle = 0;
  int64_t in_use = size;
  for (const Kept& kept : blocks_) {
    (kept.idle ? idle : in_use) += kept.block.bytes;
  }
  most_in_use_ = std::max(in_use, most_in_use_ - most_in_use_ / 8);
  std::vector<Block> spare;
  for (auto kept = blocks_.begin(); kept != blocks_.end();) {
    if (!kept->idle || idle <= 2 * most_in_use_) {
      ++kept;
      continue;
    }
    idle -= kept->block.bytes;
    spare.push_back(kept->block);
    kept = blocks_.erase(kept);
  }
  return spare;
}

}  // namespace oneemb::gpu
