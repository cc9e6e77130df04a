#include "cpu/memory.h"

#include <malloc.h>
#include <sys/mman.h>

#include <mutex>
#include <vector>

namespace oneemb {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;
// Below this, the pages of malloc's own arena are warm already.
constexpr size_t kSmallestAdvised = size_t{4} << 20;
// From this on, malloc has new pages for each array.
constexpr size_t kSmallestMapped = size_t{32} << 20;

struct Block {
  void* data;
  size_t bytes;
};

// Blocks that no call is using. Kept for the life of the process: a training
// step wants the same sizes again and again.
class BlockPool {
 public:
  static BlockPool& Get() {
    // Never destroyed: threads may outlive static destructors.
    static BlockPool* const pool = new BlockPool;
    return *pool;
  }

  // The smallest free block that is large enough and not wastefully so.
  Block Take(size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto best = free_.end();
    for (auto it = free_.begin(); it != free_.end(); ++it) {
      if (it->bytes < bytes || it->bytes / 4 > bytes + kHugePage) continue;
      if (best == free_.end() || it->bytes < best->bytes) best = it;
    }
    if (best == free_.end()) return {nullptr, 0};
    const Block block = *best;
    free_.erase(best);
    return block;
  }

  // Keeps a block for later; the oldest of too many goes back to the system.
  void Give(Block block) {
    const std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(block);
    if (free_.size() <= kMostBlocks) return;
    munmap(free_.front().data, free_.front().bytes);
    free_.erase(free_.begin());
  }

 private:
  static constexpr size_t kMostBlocks = 16;
  std::mutex mutex_;
  std::vector<Block> free_;
};

// Has the system give all small pages from `begin` to `end`, at once: one by
// one, as they are touched, they take many times as long.
void TakePages(uintptr_t begin, uintptr_t end) {
#if defined(MADV_POPULATE_WRITE)
  constexpr uintptr_t kPage = 4096;
  begin = begin / kPage * kPage;
  // Linux before 5.14 refuses, which costs speed only.
  if (begin < end) {
    (void)madvise(reinterpret_cast<void*>(begin), end - begin,
                  MADV_POPULATE_WRITE);
  }
#else
  (void)begin;
  (void)end;
#endif
}

Block Map(size_t bytes) {
  void* const data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (data == MAP_FAILED) return {nullptr, 0};
  AdviseHugePages(data, static_cast<int64_t>(bytes));
  return {data, bytes};
}

}  // namespace

void AdviseHugePages(void* data, int64_t bytes) {
  if (bytes < static_cast<int64_t>(kSmallestAdvised)) return;
  const auto begin = reinterpret_cast<uintptr_t>(data);
  const uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t last =
      (begin + static_cast<uintptr_t>(bytes)) / kHugePage * kHugePage;
  if (last <= first) return;
  // A refusal costs speed only.
  (void)madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  if (bytes < static_cast<int64_t>(kSmallestMapped)) return;
  TakePages(begin, first);
  TakePages(last, begin + static_cast<uintptr_t>(bytes));
}

bool KeepFreedMemory() {
#if defined(__GLIBC__)
  // No block has a mapping of its own, and the heap never shrinks. Each setting
  // is one word, written under malloc's own lock.
  // NOLINTBEGIN(concurrency-mt-unsafe)
  return mallopt(M_MMAP_MAX, 0) == 1 && mallopt(M_TRIM_THRESHOLD, -1) == 1;
  // NOLINTEND(concurrency-mt-unsafe)
#else
  return false;
#endif
}

Scratch::Scratch(int64_t bytes) {
  constexpr size_t kPage = 4096;
  const size_t wanted =
      (static_cast<size_t>(bytes < 1 ? 1 : bytes) + kPage - 1) / kPage * kPage;
  Block block = BlockPool::Get().Take(wanted);
  if (block.data == nullptr) block = Map(wanted);
  data_ = block.data;
  bytes_ = block.bytes;
}

Scratch::~Scratch() {
  if (data_ != nullptr) BlockPool::Get().Give({data_, bytes_});
}

}  // namespace oneemb
