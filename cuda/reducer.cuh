// What a group of lanes does to sum the gradients of one row by the tree of
// core/summation.h, for cuda/reduce.cuh.
#pragma once

#include <cstdint>

#include "core/summation.h"
#include "cuda/arguments.h"
#include "cuda/lanes.h"
#include "cuda/sort.h"
#include "cuda/vector.cuh"
#include "cuda/warp.cuh"

namespace oneemb::gpu {

static_assert(kSumBlock == kWarp, "a window is as long as a block");

struct ReduceArgs {
  FlatBatch batch;
  const SlotPosition* entries;
  int64_t n;
  uint32_t sentinel;
  RowShape shape;
  int32_t windows_per_warp;
  int32_t window_warp_bits;  // of the warps that share a window, where they do
  const uint32_t* active;
  float* partials;       // [PartialCount(n), dim]
  uint32_t* tickets;     // [PartialCount(n)], begin as zeros
  uint64_t* non_finite;  // gradients with a NaN or an infinity; may be null

  ONEEMB_HD int warps_per_window() const { return 1 << window_warp_bits; }
};

// Sums of blocks: two a window, one of the row that begins in it and goes on,
// one of the row that went on into it.
inline int64_t PartialCount(int64_t n) {
  return 2 * (CeilDiv(n, kSumBlock) + 1);
}

// The lanes that share a row.
struct LaneGroup {
  uint32_t mask;
  int lane;  // in the group
  int lanes;
  int number;  // of the group, in the warp

  __device__ bool Any(bool value) const {
    return __ballot_sync(mask, value) != 0;
  }
  __device__ void Sync() const { __syncwarp(mask); }
};

__device__ __forceinline__ LaneGroup MakeLaneGroup(const RowShape& shape) {
  const int lane = shape.LaneOf(Lane());
  const uint32_t low = kAllLanes >> (kWarp - shape.lanes());
  return {low << (Lane() - lane), lane, shape.lanes(), shape.GroupOf(Lane())};
}

// A row of the sorted entries.
struct RowEntries {
  int32_t begin;
  uint32_t slot;
};

// Blocks of a row, or nodes that begin there, whose sums are to be added up.
struct Children {
  int32_t first;
  int32_t stride;
  int count;
};

constexpr int kLine = 128;  // bytes

__device__ __forceinline__ void PrefetchLine(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

// Adds to a word, after all that this lane has written, and its group before
// the last Sync. Unlike a fence, it leaves the first-level cache as it is.
__device__ __forceinline__ uint32_t AddRelease(uint32_t* to, uint32_t value) {
  uint32_t before;
  asm volatile("atom.add.release.gpu.global.u32 %0, [%1], %2;"
               : "=r"(before)
               : "l"(to), "r"(value)
               : "memory");
  return before;
}

__device__ __forceinline__ bool IsFinite(float x) {
  return (FloatBits(x) & ~kFloatSign) < kFloatInfinity;
}

// Elements: the Packed of its gradients.
template <class Elements>
class Reducer {
 public:
  using Storage = typename Elements::Storage;
  static constexpr int kWidth = Elements::kColumns;
  using Vector = Columns<kWidth>;
  // Loads under way at once, for each lane.
  static constexpr int kAhead = 4;

  __device__ Reducer(const ReduceArgs& args, const LaneGroup& group)
      : a_(args), group_(group) {}

  __device__ const LaneGroup& group() const { return group_; }
  __device__ int num_windows() const { return a_.windows_per_warp; }
  __device__ uint32_t sentinel() const { return a_.sentinel; }

  // Entry i; before the first and behind the last one, one without a row.
  __device__ SlotPosition EntryAt(int32_t i) const {
    return 0 <= i && i < a_.n ? a_.entries[i] : SlotPosition{a_.sentinel} << 32;
  }
  __device__ uint32_t SlotAt(int32_t i) const {
    return static_cast<uint32_t>(EntryAt(i) >> 32);
  }

  // Where the gradient of an entry is.
  __device__ const Storage* Gradient(SlotPosition entry) const {
    const uint32_t position = static_cast<uint32_t>(entry);
    const PlacedBatch& placed = a_.batch.Find(position);
    return static_cast<const Storage*>(placed.batch.gradients) +
           (position - placed.begin) * a_.shape.dim;
  }

  // The first columns of this lane, if it has any.
  __device__ int FirstColumn() const { return group_.lane * kWidth; }
  __device__ bool HasColumns() const { return FirstColumn() < a_.shape.dim; }

  // Calls f with the first column of each vector of this lane.
  template <class F>
  __device__ void ForColumns(const F& f) const {
    const int step = group_.lanes * kWidth;
    for (int c = FirstColumn(); c < a_.shape.dim; c += step) f(c);
  }

  // One column vector of the sum over `count` gradients, at most 32, from left
  // to right. -0 before them changes no bit of any sum.
  template <class Run>
  static __device__ Vector SumBlock(const Run& gradients, int count) {
    Vector sum = NegativeZero();
    int k = 0;
    for (; k + kAhead <= count; k += kAhead) {
      typename Elements::Type words[kAhead];
#pragma unroll
      for (int j = 0; j < kAhead; ++j) words[j] = gradients.Get(k + j);
#pragma unroll
      for (int j = 0; j < kAhead; ++j) Add(Elements::Unpack(words[j]), &sum);
    }
    typename Elements::Type words[kAhead - 1];
#pragma unroll
    for (int j = 0; j < kAhead - 1; ++j) {
      if (k + j < count) words[j] = gradients.Get(k + j);
    }
#pragma unroll
    for (int j = 0; j < kAhead - 1; ++j) {
      if (k + j < count) Add(Elements::Unpack(words[j]), &sum);
    }
    return sum;
  }

  // Asks for share `sub` of a gradient.
  __device__ void PrefetchShare(const Storage* gradient, int sub) const {
    constexpr int kLineColumns = kLine / int{sizeof(Storage)};
    const int step = a_.warps_per_window() * kLineColumns;
    for (int c = sub * kLineColumns; c < a_.shape.dim; c += step) {
      PrefetchLine(gradient + c);
    }
  }

  // Counts the gradients that are not finite, where their sum was not; for a
  // whole group.
  __device__ void CountNonFinite(const Storage* const* gradients,
                                 int count) const {
    if (a_.non_finite == nullptr) return;
    uint64_t found = 0;
    for (int k = 0; k < count; ++k) {
      bool all = true;
      ForColumns([&](int c) {
        const auto word = Elements::LoadConstant(gradients[k] + c);
        all = all && AllFinite(Elements::Unpack(word));
      });
      found += group_.Any(!all) ? 1 : 0;
    }
    if (group_.lane == 0) AtomicAdd64(a_.non_finite, found);
  }

  static __device__ bool AllFinite(const Vector& x) {
    bool finite = true;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) finite = finite && IsFinite(x.v[i]);
    return finite;
  }

  // Where the sum of block `block` of a row is kept.
  __device__ int32_t PartialIndex(const RowEntries& row, int32_t block) const {
    return 2 * (row.begin / kSumBlock + block) + (block == 0 ? 0 : 1);
  }

  __device__ float* Partial(const RowEntries& row, int32_t block) const {
    return a_.partials + int64_t{PartialIndex(row, block)} * a_.shape.dim;
  }

  // One column vector of a sum that other multiprocessors may have written:
  // past the first-level cache.
  static __device__ Vector LoadPartial(const float* partial, int column) {
    using Word = typename PackedFloats<kWidth>::Type;
    return PackedFloats<kWidth>::Unpack(
        __ldcg(reinterpret_cast<const Word*>(partial + column)));
  }

  // Goes up the tree from a block whose sum has just been written, as far as
  // this group is the last to arrive. True when that is the root, whose sum is
  // then the partial sum of block 0.
  __device__ bool Climb(const RowEntries& row, int32_t block) const {
    int32_t child = block;
    Children children{0, 1, 0};
    for (int level = 0; level < kMaxSumLevels; ++level) {
      const int32_t parent = child / kSumBlock;
      const int32_t span = kSumBlock * children.stride;
      children.first = parent * span;
      CountChildren(row, &children);
      if (!IsLast(row, children.first + level, children.count)) return false;
      AddChildren(row, children);
      if (parent == 0 && !HasBlock(row, span)) return true;
      child = parent;
      children.stride = span;
    }
    return false;
  }

 private:
  static __device__ __forceinline__ Vector NegativeZero() {
    Vector zero;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) zero.v[i] = -0.0F;
    return zero;
  }

  static __device__ __forceinline__ void Add(const Vector& x, Vector* sum) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) sum->v[i] += x.v[i];
  }

  // Writes the sum over children in the place of the first.
  __device__ void AddChildren(const RowEntries& row,
                              const Children& children) const {
    float* const first = Partial(row, children.first);
    const float* const others = Partial(row, children.first + children.stride);
    const int64_t step = int64_t{2 * children.stride} * a_.shape.dim;
    ForColumns([&](int c) {
      Vector sum = LoadPartial(first, c);
      const float* from = others;
#pragma unroll 4
      for (int k = 1; k < children.count; ++k) {
        Add(LoadPartial(from, c), &sum);
        from += step;
      }
      StoreFloats<kWidth>(first + c, sum);
    });
  }

  // Without a branch, so that several are looked for at once.
  __device__ bool HasBlock(const RowEntries& row, int32_t block) const {
    const int64_t entry = row.begin + int64_t{block} * kSumBlock;
    const bool inside = entry < a_.n;
    const SlotPosition found = a_.entries[inside ? entry : row.begin];
    return inside & (static_cast<uint32_t>(found >> 32) == row.slot);
  }

  __device__ void CountChildren(const RowEntries& row,
                                Children* children) const {
    uint32_t mine = 0;
#pragma unroll 8
    for (int k = group_.lane; k < kSumBlock; k += group_.lanes) {
      mine += HasBlock(row, children->first + k * children->stride) ? 1 : 0;
    }
    children->count = static_cast<int>(__reduce_add_sync(group_.mask, mine));
  }

  // Whether this group is the last of `count` to arrive at a ticket. An only
  // child does not ask: so the ticket's block is always one of this row.
  __device__ bool IsLast(const RowEntries& row, int32_t block,
                         int count) const {
    if (count == 1) return true;
    group_.Sync();
    uint32_t ticket = 0;
    if (group_.lane == 0) {
      ticket = AddRelease(a_.tickets + PartialIndex(row, block), 1);
    }
    ticket = __shfl_sync(group_.mask, ticket, 0, group_.lanes);
    if (ticket + 1 != static_cast<uint32_t>(count)) return false;
    __threadfence();
    group_.Sync();
    return true;
  }

  const ReduceArgs& a_;
  const LaneGroup& group_;
};

}  // namespace oneemb::gpu
