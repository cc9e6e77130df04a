// Sums the gradients of every row by the tree of core/summation.h, and hands
// each sum to a sink, in one kernel.
//
// Entries are sorted by slot. A warp looks after a window of 32 of them, or a few
// such windows where rows are narrow: it sums the blocks of 32 entries, counted
// from the beginning of each row, that begin there. A row of one block is done with that. For a longer one
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

#ifndef RB
#define RB 3
#endif
#ifndef WPW
#define WPW 4
#endif
namespace oneemb::gpu {

static_assert(kSumBlock == kWarp, "a window is as long as a block");

struct ReduceArgs {
  FlatBatch batch;
  const SlotPosition* entries;
  int64_t n;
  uint32_t sentinel;
  RowShape shape;
  int32_t windows_per_warp;
  int32_t warps_per_window;  // 1 unless windows_per_warp is
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

constexpr int kMaxWindows = 4;  // of a warp

// Shares out the windows. A small batch has too few to keep the memory busy:
// then several warps share the blocks of one. Where several rows fit into a
// warp, the one block that a window of a hot row has would leave the other
// lanes idle: then a warp has several windows.
inline void ShareWindows(ReduceArgs* args) {
  const int groups = kWarp / args->shape.lanes;
  args->windows_per_warp = 1;
  args->warps_per_window = 1;
  if (args->n <= (1 << 17)) {
    args->warps_per_window = WPW;
  } else if (args->n <= (1 << 19)) {
    args->warps_per_window = 2;
  } else if (groups > 1) {
    args->windows_per_warp = groups / 2 < kMaxWindows ? groups / 2 : kMaxWindows;
  }
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
  // Loads under way at once, for each lane.
  static constexpr int kAhead = 4;

  __device__ Reducer(const ReduceArgs& args, const LaneGroup& group)
      : a_(args), group_(group) {}

  // Entry i; behind the last one, one without a row.
  __device__ SlotPosition EntryAt(int32_t i) const {
    return i < a_.n ? a_.entries[i] : SlotPosition{a_.sentinel} << 32;
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

  // The first columns of this lane, and the step to its next ones.
  __device__ int FirstColumn() const { return group_.lane * kWidth; }
  __device__ int ColumnStep() const { return group_.lanes * kWidth; }

  // One column vector of the sum over `count` gradients, at most 32, from left
  // to right. -0 before them changes no bit of any sum.
  static __device__ Vector SumBlock(const Storage* const* gradients, int count,
                                    int column) {
    Vector sum = NegativeZero();
    for (int k = 0; k < count; k += kAhead) {
      typename Elements::Type words[kAhead];
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        if (k + j >= count) continue;
        words[j] = Elements::LoadConstant(gradients[k + j] + column);
      }
#pragma unroll
      for (int j = 0; j < kAhead; ++j) {
        if (k + j < count) Add(Elements::Unpack(words[j]), &sum);
      }
    }
    return sum;
  }

  // Asks for a gradient, to be in the cache later.
  __device__ void Prefetch(const Storage* gradient) const {
    if (FirstColumn() < a_.shape.dim) PrefetchLine(gradient + FirstColumn());
  }

  // Asks for a whole gradient where it is short.
  __device__ void PrefetchShort(const Storage* gradient) const {
    constexpr int kLine = 128;
    if (a_.shape.dim * int{sizeof(Storage)} <= kLine) PrefetchLine(gradient);
  }

  // Says that a sum over these gradients was not finite.
  __device__ void CountNonFinite(const Storage* const* gradients,
                                 int count) const {
    uint64_t found = 0;
    for (int k = 0; k < count; ++k) {
      bool finite = true;
      for (int c = FirstColumn(); c < a_.shape.dim; c += ColumnStep()) {
        const auto word = Elements::LoadConstant(gradients[k] + c);
        finite = finite && AllFinite(Elements::Unpack(word));
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
    for (int c = FirstColumn(); c < a_.shape.dim; c += ColumnStep()) {
      Vector sum = LoadPartial(first, c);
      const float* from = others;
#pragma unroll 4
      for (int k = 1; k < children.count; ++k) {
        Add(LoadPartial(from, c), &sum);
        from += step;
      }
      StoreFloats<kWidth>(first + c, sum);
    }
  }

  __device__ bool HasBlock(const RowEntries& row, int32_t block) const {
    const int64_t entry = row.begin + int64_t{block} * kSumBlock;
    return entry < a_.n && SlotAt(static_cast<int32_t>(entry)) == row.slot;
  }

  // A hot row mostly has all 32.
  __device__ void CountChildren(const RowEntries& row,
                                Children* children) const {
    children->count = kSumBlock;
    const int32_t last = children->first + (kSumBlock - 1) * children->stride;
    if (HasBlock(row, last)) return;
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
    if (ticket + 1 != static_cast<uint32_t>(count)) return false;
    __threadfence();
    return true;
  }

  const ReduceArgs& a_;
  const LaneGroup& group_;
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

// A block of entries that begins in the windows of a warp, packed for shared
// memory.
struct BlockItem {
  uint32_t bits;

  // From the first window's beginning.
  __device__ int offset() const { return static_cast<int>(bits & 0xff); }
  __device__ int window() const { return offset() / kWarp; }
  __device__ int count() const { return static_cast<int>(bits >> 8 & 63); }
  __device__ bool whole() const { return (bits >> 14 & 1) != 0; }
  __device__ bool first() const { return (bits >> 15 & 1) != 0; }
};

__device__ __forceinline__ BlockItem MakeBlockItem(int offset, int count,
                                                   bool whole, bool first) {
  return {static_cast<uint32_t>(offset) | static_cast<uint32_t>(count) << 8 |
          (whole ? 1U << 14 : 0U) | (first ? 1U << 15 : 0U)};
}

// What a warp knows of its windows.
template <class Storage>
struct WindowShared {
  // The gradients of its entries and of those that follow.
  const Storage* gradients[(kMaxWindows + 1) * kWarp];
  BlockItem items[kMaxWindows * kWarp];  // the blocks that begin there
  // Where the row began that a window's first entry is in.
  int32_t continued[kMaxWindows];
};

// Lists the blocks that begin in window `w` of a warp, as items from `count` on;
// for the whole warp. `entry` and `next_entry` are this lane's of that window
// and of the next one. Returns the number of items.
template <class Reduce>
__device__ int ListBlocks(const Reduce& reduce, int32_t begin, int w,
                          SlotPosition entry, SlotPosition next_entry,
                          uint32_t sentinel, int count,
                          WindowShared<typename Reduce::Storage>* shared) {
  const int lane = Lane();
  const int32_t window = begin + w * kWarp;
  const uint32_t slot = static_cast<uint32_t>(entry >> 32);
  const uint32_t next = static_cast<uint32_t>(next_entry >> 32);
  uint32_t before = __shfl_up_sync(kAllLanes, slot, 1);
  if (lane == 0) before = window > 0 ? reduce.SlotAt(window - 1) : ~slot;
  const uint32_t last = __shfl_sync(kAllLanes, slot, kWarp - 1);
  uint32_t before_next = __shfl_up_sync(kAllLanes, next, 1);
  if (lane == 0) before_next = last;
  const uint32_t heads_here = __ballot_sync(kAllLanes, slot != before);
  const uint64_t heads_next = __ballot_sync(kAllLanes, next != before_next);
  const uint64_t heads = heads_here | heads_next << kWarp;
  uint32_t starts = heads_here & __ballot_sync(kAllLanes, slot != sentinel);
  const uint32_t first_slot = __shfl_sync(kAllLanes, slot, 0);
  if ((heads_here & 1) == 0 && first_slot != sentinel) {
    const int32_t row_begin = FindRowBegin(reduce, window, first_slot);
    if (lane == 0) shared->continued[w] = row_begin;
    const int into = static_cast<int>((window - row_begin) % kSumBlock);
    const int start = (kSumBlock - into) % kSumBlock;
    const int row_end = heads_here == 0 ? kWarp : __ffs(heads_here) - 1;
    if (start < row_end) starts |= 1U << start;
  }
  if ((starts >> lane & 1) != 0) {
    const int to_head = __ffsll(static_cast<long long>(heads >> (lane + 1)));
    const bool ends = to_head != 0 && to_head <= kSumBlock;
    const bool first = (heads_here >> lane & 1) != 0;
    shared->items[count + __popc(starts & LowerLanes())] =
        MakeBlockItem(w * kWarp + lane, ends ? to_head : kSumBlock,
                      first && ends, first);
  }
  return count + __popc(starts);
}

// Lists the blocks that begin in the windows of a warp, from entry `begin` on;
// for the whole warp. Returns their number.
template <class Reduce>
__device__ int ListWindows(const Reduce& reduce, int32_t begin, int num_windows,
                           uint32_t sentinel,
                           WindowShared<typename Reduce::Storage>* shared) {
  SlotPosition entries[kMaxWindows + 1];
#pragma unroll
  for (int w = 0; w <= kMaxWindows; ++w) {
    if (w > num_windows) break;
    const int32_t i = begin + w * kWarp + Lane();
    entries[w] = reduce.EntryAt(i);
    const auto* const gradient = reduce.Gradient(entries[w]);
    shared->gradients[w * kWarp + Lane()] = gradient;
    reduce.PrefetchShort(gradient);
  }
  int count = 0;
#pragma unroll
  for (int w = 0; w < kMaxWindows; ++w) {
    if (w == num_windows) break;
    count = ListBlocks(reduce, begin, w, entries[w], entries[w + 1], sentinel,
                       count, shared);
  }
  __syncwarp();
  return count;
}

// What happens to the sums is up to the sink, which is called by whole groups:
//   Prefetch<kWidth>(slot, group)       asks for a row ahead of time
//   Row<kWidth>(slot, group, gradient)  takes a row's sum; gradient(column) is
//                                       one column vector of it
template <class Access, class Sink, int kWidth>
__global__ __launch_bounds__(kBlockThreads, RB) void ReduceKernel(
    const __grid_constant__ ReduceArgs a,
    const __grid_constant__ typename Sink::Args sink_args) {
  using Storage = typename Access::Storage;
  __shared__ WindowShared<Storage> windows[kBlockWarps];
  __shared__ typename Sink::Shared shared[kBlockWarps];
  if (*a.active == 0) return;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t index = int64_t{blockIdx.x} * kBlockWarps + warp;
  const int64_t begin =
      index / a.warps_per_window * a.windows_per_warp * kWarp;
  if (begin >= a.n) return;
  const LaneGroup group = MakeLaneGroup(a.shape.lanes);
  const Reducer<Access, kWidth> reduce(a, group);
  WindowShared<Storage>& mine = windows[warp];
  const auto first = static_cast<int32_t>(begin);
  const int count =
      ListWindows(reduce, first, a.windows_per_warp, a.sentinel, &mine);
  Sink sink(sink_args, a.shape, &shared[warp]);
  const int groups = kWarp / a.shape.lanes;
  const int sub = static_cast<int>(index % a.warps_per_window);
  const int stride = groups * a.warps_per_window;
  for (int i = sub * groups + Lane() / a.shape.lanes; i < count; i += stride) {
    const BlockItem item = mine.items[i];
    const Storage* const* const gradients = mine.gradients + item.offset();
    const int32_t entry = first + item.offset();
    const uint32_t slot = reduce.SlotAt(entry);
    if (i + stride < count) {
      const BlockItem next = mine.items[i + stride];
      reduce.Prefetch(mine.gradients[next.offset()]);
      if (next.whole()) {
        sink.template Prefetch<kWidth>(reduce.SlotAt(first + next.offset()),
                                       group);
      }
    }
    bool finite = true;
    const auto sum_block = [&](int column) {
      const Columns<kWidth> sum =
          reduce.SumBlock(gradients, item.count(), column);
      finite = finite && reduce.AllFinite(sum);
      return sum;
    };
    const RowEntries row{item.first() ? entry : mine.continued[item.window()],
                         slot};
    bool is_root = item.whole();
    if (!is_root) {
      const int32_t block = (entry - row.begin) / kSumBlock;
      for (int c = reduce.FirstColumn(); c < a.shape.dim;
           c += reduce.ColumnStep()) {
        StoreFloats<kWidth>(reduce.Partial(row, block) + c, sum_block(c));
      }
      is_root = reduce.Climb(row, block);
    }
    if (is_root) {
      const float* const root = reduce.Partial(row, 0);
      sink.template Row<kWidth>(slot, group, [&](int column) {
        return item.whole() ? sum_block(column)
                            : reduce.LoadPartial(root, column);
      });
    }
    if (a.non_finite != nullptr && group.Any(!finite)) {
      reduce.CountNonFinite(gradients, item.count());
    }
  }
}

template <class Sink, class Access>
cudaError_t LaunchReduce(cudaStream_t stream, const ReduceArgs& args,
                         const typename Sink::Args& sink, int width) {
  if (args.n == 0) return cudaSuccess;
  const int64_t warps =
      CeilDiv(args.n, args.windows_per_warp * kWarp) * args.warps_per_window;
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
