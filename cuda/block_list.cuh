// The blocks of a batch's sorted entries that a warp sums, for cuda/reduce.cuh.
#pragma once

#include <cstdint>

#include "core/summation.h"
#include "cuda/sort.h"
#include "cuda/warp.cuh"

namespace oneemb::gpu {

constexpr int kMaxWindows = 2;  // of a warp

// A block of entries that begins in the windows of a warp, packed for shared
// memory.
struct BlockItem {
  uint32_t bits;

  // From the first window's beginning.
  __device__ int offset() const { return static_cast<int>(bits & 0xff); }
  __device__ int window() const { return offset() / kWarp; }
  __device__ int count() const { return static_cast<int>(bits >> 8 & 63); }
  __device__ int end() const { return offset() + count(); }
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
  // Of the entries of the windows, and of those of the one behind them.
  const Storage* gradients[(kMaxWindows + 1) * kWarp];
  uint32_t slots[kMaxWindows * kWarp];
  BlockItem items[kMaxWindows * kWarp];  // the blocks that begin there
  // Where the row began that a window's first entry is in.
  int32_t continued[kMaxWindows];
};

// The slots of a warp's windows, of the one before and of the one behind them:
// this lane's of each.
struct WindowSlots {
  uint32_t before;
  uint32_t windows[kMaxWindows + 1];
};

// Where the row of the entry at `window`, of slot `slot`, begins; `before` is
// this lane's slot in the window before. For a whole warp.
template <class Reduce>
__device__ int32_t FindRowBegin(const Reduce& reduce, int32_t window,
                                uint32_t before, uint32_t slot) {
  const uint32_t differs = __ballot_sync(kAllLanes, before != slot);
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

// Where rows begin, a bit an entry.
struct RowHeads {
  uint32_t here;   // in a window
  uint64_t ahead;  // in it, and in the one behind it
};

// For a whole warp, of window `w`.
__device__ inline RowHeads FindRowHeads(const WindowSlots& slots, int w) {
  const uint32_t slot = slots.windows[w];
  const uint32_t next = slots.windows[w + 1];
  const uint32_t in_front = w == 0 ? slots.before : slots.windows[w - 1];
  uint32_t before = __shfl_up_sync(kAllLanes, slot, 1);
  const uint32_t last_before = __shfl_sync(kAllLanes, in_front, kWarp - 1);
  if (Lane() == 0) before = last_before;
  uint32_t before_next = __shfl_up_sync(kAllLanes, next, 1);
  const uint32_t last = __shfl_sync(kAllLanes, slot, kWarp - 1);
  if (Lane() == 0) before_next = last;
  const uint32_t here = __ballot_sync(kAllLanes, slot != before);
  const uint64_t behind = __ballot_sync(kAllLanes, next != before_next);
  return {here, here | behind << kWarp};
}

// Lists the blocks that begin in window `w` of a warp, as items from `count`
// on; for the whole warp. *row_begin is where the last row before the window
// began (of the first window it is not known yet), and is then where the last
// row of this one did. Returns the number of items.
template <class Reduce>
__device__ int ListBlocks(const Reduce& reduce, int32_t begin, int w,
                          const WindowSlots& slots, int count,
                          int32_t* row_begin,
                          WindowShared<typename Reduce::Storage>* shared) {
  const int lane = Lane();
  const uint32_t sentinel = reduce.sentinel();
  const int32_t window = begin + w * kWarp;
  const uint32_t slot = slots.windows[w];
  const RowHeads heads = FindRowHeads(slots, w);
  uint32_t starts = heads.here & __ballot_sync(kAllLanes, slot != sentinel);
  const uint32_t first_slot = __shfl_sync(kAllLanes, slot, 0);
  if ((heads.here & 1) == 0 && first_slot != sentinel) {
    if (w == 0) {
      *row_begin = FindRowBegin(reduce, window, slots.before, first_slot);
    }
    if (lane == 0) shared->continued[w] = *row_begin;
    const int into = static_cast<int>((window - *row_begin) % kSumBlock);
    const int start = (kSumBlock - into) % kSumBlock;
    const int row_end = heads.here == 0 ? kWarp : __ffs(heads.here) - 1;
    if (start < row_end) starts |= 1U << start;
  }
  if ((starts >> lane & 1) != 0) {
    const int to_head =
        __ffsll(static_cast<long long>(heads.ahead >> (lane + 1)));
    const bool ends = to_head != 0 && to_head <= kSumBlock;
    const bool first = (heads.here >> lane & 1) != 0;
    shared->items[count + __popc(starts & LowerLanes())] = MakeBlockItem(
        w * kWarp + lane, ends ? to_head : kSumBlock, first && ends, first);
  }
  if (heads.here != 0) *row_begin = window + kWarp - 1 - __clz(heads.here);
  return count + __popc(starts);
}

// Looks at the windows of a warp, from entry `begin` on; for the whole warp.
template <class Reduce>
__device__ WindowSlots
ReadWindows(const Reduce& reduce, int32_t begin,
            WindowShared<typename Reduce::Storage>* shared) {
  WindowSlots slots{};
  slots.before = reduce.SlotAt(begin - kWarp + Lane());
#pragma unroll
  for (int w = 0; w <= kMaxWindows; ++w) {
    if (w > reduce.num_windows()) break;
    const SlotPosition entry = reduce.EntryAt(begin + w * kWarp + Lane());
    slots.windows[w] = static_cast<uint32_t>(entry >> 32);
    shared->gradients[w * kWarp + Lane()] = reduce.Gradient(entry);
    if (w < kMaxWindows) shared->slots[w * kWarp + Lane()] = slots.windows[w];
  }
  __syncwarp();
  return slots;
}

// Lists the blocks that begin in the windows of a warp, from entry `begin` on;
// for the whole warp. Returns their number.
template <class Reduce>
__device__ int ListWindows(const Reduce& reduce, int32_t begin,
                           const WindowSlots& slots,
                           WindowShared<typename Reduce::Storage>* shared) {
  int count = 0;
  int32_t row_begin = 0;
#pragma unroll
  for (int w = 0; w < kMaxWindows; ++w) {
    if (w == reduce.num_windows()) break;
    count = ListBlocks(reduce, begin, w, slots, count, &row_begin, shared);
  }
  __syncwarp();
  return count;
}

}  // namespace oneemb::gpu
