// Sums the gradients of every row by the tree of core/summation.h, and hands
// each sum to a sink, in one kernel.
//
// Entries are sorted by slot. A warp looks after a window of 32 of them: it
// sums the blocks of 32 entries, counted from the beginning of each row, that
// begin in its window. A row of one block is done with that. For a longer one
// the sum goes to memory, and whoever finds that all blocks of the next level
// are there adds those up, and so on to the root: a hot row is summed by as
// many warps as it has blocks, and nobody waits.
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
  int32_t warps_per_window;
  const uint32_t* active;
  float* partials;       // [PartialCount(n), dim]
  uint32_t* tickets;     // [PartialCount(n)], begin as zeros
  uint64_t* non_finite;  // gradients with a NaN or an infinity; may be null
};

// Sums of blocks: two a window, one of the row that begins in it and goes on,
// one of the row that went on into it.
inline int64_t PartialCount(int64_t n) {
  return 2 * (CeilDiv(n, kSumBlock) + 1);
}

// A small batch has too few windows to keep the memory busy: then several warps
// share the blocks of one.
inline int32_t WarpsPerWindow(int64_t n) {
  return n <= (1 << 17) ? 4 : (n <= (1 << 19) ? 2 : 1);
}

// The lanes that share a row.
struct LaneGroup {
  uint32_t mask;
  int lane;  // in the group
  int lanes;

  __device__ bool Any(bool value) const {
    return __ballot_sync(mask, value) != 0;
  }
  __device__ void Sync() const { __syncwarp(mask); }
};

__device__ __forceinline__ LaneGroup MakeLaneGroup(int lanes) {
  const uint32_t low = lanes == kWarp ? kAllLanes : (1U << lanes) - 1;
  const int first = Lane() / lanes * lanes;
  return {low << first, Lane() - first, lanes};
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

__device__ __forceinline__ void PrefetchLine(const void* address) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
}

__device__ __forceinline__ bool IsFinite(float x) {
  return (FloatBits(x) & ~kFloatSign) < kFloatInfinity;
}

template <class Access, int kWidth>
class Reducer {
 public:
  using Storage = typename Access::Storage;
  using Vector = Columns<kWidth>;
  using Elements = Packed<Access, kWidth>;

  __device__ Reducer(const ReduceArgs& args, const LaneGroup& group)
      : a_(args),
        group_(group),
        only_(args.batch.count == 1 ? static_cast<const Storage*>(
                                          args.batch.first[0].batch.gradients)
                                    : nullptr) {}

  __device__ uint32_t SlotAt(int32_t i) const {
    return i < a_.n ? static_cast<uint32_t>(a_.entries[i] >> 32) : a_.sentinel;
  }

  // The first columns of this lane, and the step to its next ones.
  __device__ int FirstColumn() const { return group_.lane * kWidth; }
  __device__ int ColumnStep() const { return group_.lanes * kWidth; }

  // One column vector of the sum over entries[begin, begin + count), count at
  // most 32, from left to right.
  __device__ Vector SumBlock(int32_t begin, int count, int column) const {
    constexpr int kAhead = 4;
    Vector sum = Elements::Unpack(Load(begin, column));
    int k = 1;
    for (; k + kAhead <= count; k += kAhead) {
      typename Elements::Type words[kAhead];
#pragma unroll
      for (int j = 0; j < kAhead; ++j) words[j] = Load(begin + k + j, column);
#pragma unroll
      for (int j = 0; j < kAhead; ++j) Add(Elements::Unpack(words[j]), &sum);
    }
    for (; k < count; ++k) Add(Elements::Unpack(Load(begin + k, column)), &sum);
    return sum;
  }

  // Asks for the first gradient of a block, to be in the cache later.
  __device__ void Prefetch(int32_t begin) const {
    if (FirstColumn() >= a_.shape.dim) return;
    PrefetchLine(Gradient(begin) + FirstColumn());
  }

  // Asks for the gradients of a whole window where they are short.
  __device__ void PrefetchWindow(int32_t window) const {
    constexpr int kLine = 128;
    const int32_t entry = window + Lane();
    if (a_.shape.dim * int{sizeof(Storage)} > kLine || entry >= a_.n) return;
    PrefetchLine(Gradient(entry));
  }

  // Says that a sum over these entries was not finite.
  __device__ void CountNonFinite(int32_t begin, int count) const {
    uint64_t found = 0;
    for (int k = 0; k < count; ++k) {
      bool finite = true;
      for (int c = FirstColumn(); c < a_.shape.dim; c += ColumnStep()) {
        finite = finite && AllFinite(Elements::Unpack(Load(begin + k, c)));
      }
      found += group_.Any(!finite) ? 1 : 0;
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

  // One column vector of the sum over children.
  __device__ Vector SumPartials(const RowEntries& row, const Children& children,
                                int column) const {
    Vector sum = LoadPartial(row, children.first, column);
#pragma unroll 4
    for (int k = 1; k < children.count; ++k) {
      Add(LoadPartial(row, children.first + k * children.stride, column), &sum);
    }
    return sum;
  }

  // Goes up the tree from a block whose sum has just been written, as far as
  // this group is the last to arrive. True when that is the root: then
  // *children are what is left to be added up.
  __device__ bool Climb(const RowEntries& row, int32_t block,
                        Children* children) const {
    int32_t child = block;
    children->stride = 1;
    for (int level = 0; level < kMaxSumLevels; ++level) {
      const int32_t parent = child / kSumBlock;
      children->first = parent * kSumBlock * children->stride;
      CountChildren(row, children);
      if (!IsLast(row, children->first + level, children->count)) return false;
      const int32_t span = kSumBlock * children->stride;
      if (parent == 0 && !HasBlock(row, span)) return true;
      for (int c = FirstColumn(); c < a_.shape.dim; c += ColumnStep()) {
        StoreFloats<kWidth>(Partial(row, children->first) + c,
                            SumPartials(row, *children, c));
      }
      child = parent;
      children->stride = span;
    }
    return false;
  }

 private:
  __device__ const Storage* Gradient(int32_t entry) const {
    const uint32_t position = static_cast<uint32_t>(a_.entries[entry]);
    if (only_ != nullptr) return only_ + int64_t{position} * a_.shape.dim;
    const PlacedBatch& placed = a_.batch.Find(position);
    return static_cast<const Storage*>(placed.batch.gradients) +
           (position - placed.begin) * a_.shape.dim;
  }

  __device__ typename Elements::Type Load(int32_t entry, int column) const {
    return Elements::LoadConstant(Gradient(entry) + column);
  }

  static __device__ __forceinline__ void Add(const Vector& x, Vector* sum) {
#pragma unroll
    for (int i = 0; i < kWidth; ++i) sum->v[i] += x.v[i];
  }

  // Written by other multiprocessors: past the first-level cache.
  __device__ Vector LoadPartial(const RowEntries& row, int32_t block,
                                int column) const {
    using Word = typename PackedFloats<kWidth>::Type;
    return PackedFloats<kWidth>::Unpack(
        __ldcg(reinterpret_cast<const Word*>(Partial(row, block) + column)));
  }

  __device__ bool HasBlock(const RowEntries& row, int32_t block) const {
    const int64_t entry = row.begin + int64_t{block} * kSumBlock;
    return entry < a_.n && SlotAt(static_cast<int32_t>(entry)) == row.slot;
  }

  __device__ void CountChildren(const RowEntries& row,
                                Children* children) const {
    children->count = 0;
    for (int k = 0; k < kSumBlock; k += group_.lanes) {
      const bool has =
          HasBlock(row, children->first + (k + group_.lane) * children->stride);
      children->count += __popc(__ballot_sync(group_.mask, has));
    }
  }

  // Whether this group is the last of `count` to arrive at a ticket. An only
  // child does not ask: so the ticket's block is always one of this row.
  __device__ bool IsLast(const RowEntries& row, int32_t block,
                         int count) const {
    if (count == 1) return true;
    __threadfence();
    group_.Sync();
    uint32_t ticket = 0;
    if (group_.lane == 0) {
      ticket = atomicAdd(a_.tickets + PartialIndex(row, block), 1U);
    }
    ticket = __shfl_sync(group_.mask, ticket, 0, group_.lanes);
    __threadfence();
    return ticket + 1 == static_cast<uint32_t>(count);
  }

  const ReduceArgs& a_;
  const LaneGroup& group_;
  const Storage* only_;  // the gradients, where one lookup has them all
};

// Where the row of entry `end` (the first of a window) begins; for a whole
// warp.
template <class Reduce>
__device__ int32_t FindRowBegin(const Reduce& reduce, int32_t window,
                                uint32_t slot) {
  const int32_t before = window - kWarp + Lane();
  const uint32_t differs =
      __ballot_sync(kAllLanes, before < 0 || reduce.SlotAt(before) != slot);
  if (differs != 0) return window - __clz(differs);
  int32_t low = 0;
  int32_t high = window - kWarp;  // of this row
  while (low < high) {
    const int32_t step = (high - low + kWarp - 1) / kWarp;
    const int32_t i = low + Lane() * step;
    const bool below = i < high && reduce.SlotAt(i) < slot;
    const int count = __popc(__ballot_sync(kAllLanes, below));
    if (count == 0) return low;
    const int32_t reached = low + count * step;
    low += (count - 1) * step + 1;
    high = high < reached ? high : reached;
  }
  return low;
}

// A block of entries that begins in a window, packed for shared memory.
struct BlockItem {
  uint32_t bits;

  __device__ int offset() const { return static_cast<int>(bits & 31); }
  __device__ int count() const { return static_cast<int>((bits >> 5) & 63); }
  __device__ bool whole() const { return (bits >> 11 & 1) != 0; }
  __device__ bool first() const { return (bits >> 12 & 1) != 0; }
};

__device__ __forceinline__ BlockItem MakeBlockItem(int offset, int count,
                                                   bool whole, bool first) {
  return {static_cast<uint32_t>(offset) | static_cast<uint32_t>(count) << 5 |
          (whole ? 1U << 11 : 0U) | (first ? 1U << 12 : 0U)};
}

// Lists the blocks that begin in a window; for a whole warp. Returns their
// number; *continued: where the row began that the window's first entry is in.
template <class Reduce>
__device__ int ListBlocks(const Reduce& reduce, int32_t window,
                          uint32_t sentinel, BlockItem* items,
                          int32_t* continued) {
  const int lane = Lane();
  const uint32_t slot = reduce.SlotAt(window + lane);
  const uint32_t next = reduce.SlotAt(window + kWarp + lane);
  uint32_t before = __shfl_up_sync(kAllLanes, slot, 1);
  if (lane == 0) before = window > 0 ? reduce.SlotAt(window - 1) : ~slot;
  const uint32_t last = __shfl_sync(kAllLanes, slot, kWarp - 1);
  uint32_t before_next = __shfl_up_sync(kAllLanes, next, 1);
  if (lane == 0) before_next = last;
  const uint32_t heads_here = __ballot_sync(kAllLanes, slot != before);
  const uint64_t heads_next = __ballot_sync(kAllLanes, next != before_next);
  const uint64_t heads = heads_here | heads_next << kWarp;
  uint32_t starts = heads_here & __ballot_sync(kAllLanes, slot != sentinel);
  *continued = window;
  const uint32_t first_slot = __shfl_sync(kAllLanes, slot, 0);
  if ((heads_here & 1) == 0 && first_slot != sentinel) {
    *continued = FindRowBegin(reduce, window, first_slot);
    const int into = static_cast<int>((window - *continued) % kSumBlock);
    const int start = (kSumBlock - into) % kSumBlock;
    const int row_end = heads_here == 0 ? kWarp : __ffs(heads_here) - 1;
    if (start < row_end) starts |= 1U << start;
  }
  if ((starts >> lane & 1) != 0) {
    const int to_head = __ffsll(static_cast<long long>(heads >> (lane + 1)));
    const bool ends = to_head != 0 && to_head <= kSumBlock;
    const bool first = (heads_here >> lane & 1) != 0;
    items[__popc(starts & LowerLanes())] =
        MakeBlockItem(lane, ends ? to_head : kSumBlock, first && ends, first);
  }
  __syncwarp();
  return __popc(starts);
}

// What happens to the sums is up to the sink, which is called by whole groups:
//   Prefetch<kWidth>(slot, group)       asks for a row ahead of time
//   Row<kWidth>(slot, group, gradient)  takes a row's sum; gradient(column) is
//                                       one column vector of it
template <class Access, class Sink, int kWidth>
__global__ __launch_bounds__(kBlockThreads) void ReduceKernel(
    const __grid_constant__ ReduceArgs a,
    const __grid_constant__ typename Sink::Args sink_args) {
  __shared__ BlockItem items[kBlockWarps][kWarp];
  __shared__ typename Sink::Shared shared[kBlockWarps];
  if (*a.active == 0) return;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t index = int64_t{blockIdx.x} * kBlockWarps + warp;
  const int32_t window =
      static_cast<int32_t>(index / a.warps_per_window) * kWarp;
  if (window >= a.n) return;
  const LaneGroup group = MakeLaneGroup(a.shape.lanes);
  const Reducer<Access, kWidth> reduce(a, group);
  int32_t continued = 0;
  const int count =
      ListBlocks(reduce, window, a.sentinel, items[warp], &continued);
  reduce.PrefetchWindow(window);
  Sink sink(sink_args, a.shape, &shared[warp]);
  const int groups = kWarp / a.shape.lanes;
  const int sub = static_cast<int>(index % a.warps_per_window);
  const int stride = groups * a.warps_per_window;
  for (int i = sub * groups + Lane() / a.shape.lanes; i < count; i += stride) {
    const BlockItem item = items[warp][i];
    const int32_t begin = window + item.offset();
    const uint32_t slot = reduce.SlotAt(begin);
    if (i + stride < count) {
      const BlockItem next = items[warp][i + stride];
      reduce.Prefetch(window + next.offset());
      if (next.whole()) {
        sink.template Prefetch<kWidth>(reduce.SlotAt(window + next.offset()),
                                       group);
      }
    }
    bool finite = true;
    const auto sum_block = [&](int column) {
      const Columns<kWidth> sum = reduce.SumBlock(begin, item.count(), column);
      finite = finite && reduce.AllFinite(sum);
      return sum;
    };
    const RowEntries row{item.first() ? begin : continued, slot};
    Children root{};
    bool is_root = item.whole();
    if (!is_root) {
      const int32_t block = (begin - row.begin) / kSumBlock;
      for (int c = reduce.FirstColumn(); c < a.shape.dim;
           c += reduce.ColumnStep()) {
        StoreFloats<kWidth>(reduce.Partial(row, block) + c, sum_block(c));
      }
      is_root = reduce.Climb(row, block, &root);
    }
    if (is_root) {
      sink.template Row<kWidth>(slot, group, [&](int column) {
        return item.whole() ? sum_block(column)
                            : reduce.SumPartials(row, root, column);
      });
    }
    if (a.non_finite != nullptr && group.Any(!finite)) {
      reduce.CountNonFinite(begin, item.count());
    }
  }
}

template <class Sink, class Access>
cudaError_t LaunchReduce(cudaStream_t stream, const ReduceArgs& args,
                         const typename Sink::Args& sink, int width) {
  if (args.n == 0) return cudaSuccess;
  const int64_t warps = CeilDiv(args.n, kWarp) * args.warps_per_window;
  const unsigned blocks = NumBlocks(warps, kBlockWarps);
  if (width == 4) {
    ReduceKernel<Access, Sink, 4>
        <<<blocks, kBlockThreads, 0, stream>>>(args, sink);
  } else {
    ReduceKernel<Access, Sink, 1>
        <<<blocks, kBlockThreads, 0, stream>>>(args, sink);
  }
  return cudaGetLastError();
}

}  // namespace oneemb::gpu
