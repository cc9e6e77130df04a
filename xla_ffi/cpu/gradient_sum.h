// Sums the gradients of one row in the fixed order of core/summation.h.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/convert.h"
#include "core/summation.h"
#include "cpu/group.h"
#include "cpu/probe.h"

namespace oneemb {

// Gradients of several lookups, addressed by flattened position.
struct GradientBatch {
  int64_t begin;  // position of the first gradient
  const void* data;
};

struct GradientsView {
  const GradientBatch* batches;  // by begin, ascending
  int64_t num_batches;
  int64_t dim;
  FloatType type;

  const char* At(int64_t position) const {
    const GradientBatch* batch = batches;
    while (batch + 1 < batches + num_batches && batch[1].begin <= position) {
      ++batch;
    }
    return static_cast<const char*>(batch->data) +
           (position - batch->begin) * dim * FloatBytes(type);
  }
};

// The floats of workspace that a GradientSum needs.
inline int64_t GradientSumSpace(int64_t dim) {
  return (kMaxSumLevels + 1) * dim;
}

// Sums one row after another in a workspace that belongs to one task.
template <class Access>
class GradientSum {
 public:
  using Storage = typename Access::Storage;

  GradientSum(const GradientsView& gradients, float* space)
      : gradients_(gradients), dim_(gradients.dim), space_(space) {}

  [[gnu::always_inline]] void Prefetch(SlotPosition entry) const {
    PrefetchLines(gradients_.At(PositionOf(entry)),
                  dim_ * int64_t{sizeof(Storage)});
  }

  // The sum over entries[0, count); valid until the next call. Calls ahead(n)
  // before it reads entries up to n, block by block: a popular row has more
  // gradients than the caches hold.
  template <class Ahead>
  const float* Sum(const SlotPosition* entries, int64_t count,
                   const Ahead& ahead) {
    ahead(count < kSumBlock ? count : int64_t{kSumBlock});
    if (count == 1) {
      if (const float* const single = AsFloat(Gradient(entries[0]))) {
        return single;
      }
    }
    if (count <= kSumBlock) {
      SumOneBlock(entries, static_cast<int>(count));
      return Level(0);
    }
    int filled[kMaxSumLevels + 1] = {};
    for (int64_t i = 0; i < count; i += kSumBlock) {
      const int64_t left = count - i;
      const int64_t size = left < kSumBlock ? left : kSumBlock;
      ahead(i + size);
      SumOneBlock(entries + i, static_cast<int>(size));
      Push(filled);
    }
    return Total(filled);
  }

  const float* Sum(const SlotPosition* entries, int64_t count) {
    return Sum(entries, count, [](int64_t) {});
  }

 private:
  float* Level(int level) const { return space_ + level * dim_; }

  const Storage* Gradient(SlotPosition entry) const {
    return reinterpret_cast<const Storage*>(gradients_.At(PositionOf(entry)));
  }

  static const float* AsFloat(const float* gradient) { return gradient; }
  static const float* AsFloat(const uint16_t*) { return nullptr; }

  // Level 0 := the entries added from left to right.
  void SumOneBlock(const SlotPosition* entries, int count) {
    constexpr int kChunk = 16;  // columns kept in registers
    const Storage* block[kSumBlock];
    for (int k = 0; k < count; ++k) block[k] = Gradient(entries[k]);
    float* const out = Level(0);
    int64_t c = 0;
    for (; c + kChunk <= dim_; c += kChunk) {
      float sum[kChunk];
      for (int j = 0; j < kChunk; ++j) sum[j] = Access::Load(block[0][c + j]);
      for (int k = 1; k < count; ++k) {
        const Storage* const gradient = block[k] + c;
        for (int j = 0; j < kChunk; ++j) sum[j] += Access::Load(gradient[j]);
      }
      std::memcpy(out + c, sum, sizeof(sum));
    }
    for (; c < dim_; ++c) {
      float sum = Access::Load(block[0][c]);
      for (int k = 1; k < count; ++k) sum += Access::Load(block[k][c]);
      out[c] = sum;
    }
  }

  // Moves level 0 up into level 1, and every full level into the next.
  void Push(int* filled) {
    for (int level = 1; level <= kMaxSumLevels; ++level) {
      float* const sum = Level(level);
      const float* const term = Level(level - 1);
      if (filled[level] == 0) {
        std::memcpy(sum, term, static_cast<size_t>(dim_) * sizeof(float));
      } else {
        for (int64_t c = 0; c < dim_; ++c) sum[c] += term[c];
      }
      if (++filled[level] < kSumBlock) return;
      filled[level] = 0;
    }
  }

  // The partly filled levels, from the highest down, are the last blocks.
  const float* Total(const int* filled) {
    const float* carry = nullptr;
    for (int level = 1; level <= kMaxSumLevels; ++level) {
      if (filled[level] == 0) continue;
      float* const sum = Level(level);
      for (int64_t c = 0; carry != nullptr && c < dim_; ++c) sum[c] += carry[c];
      carry = sum;
    }
    return carry;
  }

  const GradientsView& gradients_;
  int64_t dim_;
  float* space_;
};

}  // namespace oneemb
