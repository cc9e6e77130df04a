// Blocks of memory that take long to get, and are kept for later use.
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

#include "store/buffer_source.h"

namespace oneemb::gpu {

// Keeps at most twice what was in use at once, until the process ends. Take is
// for threads that may wait for CUDA, Return for any.
class BlockPool : public BufferSource {
 public:
  char* Take(int64_t bytes) final;
  void Return(char* data, int64_t bytes) final;

 protected:
  struct Block {
    char* data;
    int64_t bytes;
    int kind;  // as the pool has it that made it
  };
  // False where there is no memory left; without an error of CUDA that others
  // might take for theirs.
  virtual bool Make(int64_t bytes, Block* block) = 0;
  virtual void Free(const Block& block) = 0;

 private:
  struct Kept {
    Block block;
    bool idle;
  };
  // These hold mutex_, under which nobody calls CUDA.
  Kept* FindIdle(int64_t size);
  std::vector<Block> TakeSpare(int64_t size);

  std::mutex mutex_;
  std::vector<Kept> blocks_;
  int64_t most_in_use_ = 0;  // bytes; of long ago it counts less
};

}  // namespace oneemb::gpu
