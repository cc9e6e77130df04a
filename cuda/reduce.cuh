// Sums the gradients of every row by the tree of core/summation.h, and hands
// each sum to a sink, in one kernel.
//
// Entries are sorted by slot. A warp looks after a window of 32 of them, or a
// few such windows where rows are narrow: it sums the blocks of 32 entries,
// counted from the beginning of each row, that begin there. A row of one block
// is done with that. For a longer one the sum goes to memory, and whoever finds
// that all blocks of the next level are there adds those up, and so on to the
// root: a hot row is summed by as many warps as it has blocks, and nobody
// waits.
#pragma once

#include <cstdint>

#include "cuda/chain.cuh"
#include "cuda/reducer.cuh"

namespace oneemb::gpu {

constexpr int kMaxWindows = 2;  // of a warp

// A block has few warps: its room is free only when the last of them is done,
// and some climb the tree while the others wait.
constexpr int kReduceWarps = 2;
constexpr int kReduceThreads = kReduceWarps * kWarp;

// Shares out the windows. A small batch has too few to keep the memory busy:
// then several warps share the blocks of one. Where several rows fit into a
// warp, the one block that a window of a hot row has would leave the other
// lanes idle: then a warp has several windows.
inline void ShareWindows(ReduceArgs* args) {
  const int groups = kWarp / args->shape.lanes;  // rows side by side
  args->windows_per_warp = 1;
  args->warps_per_window = 1;
  if (IsSmallBatch(args->n)) {
    args->warps_per_window = groups > 1 ? 2 : 4;
  } else if (args->n <= (1 << 19)) {
    args->warps_per_window = 2;
  } else if (groups > 1) {
    args->windows_per_warp =
        groups / 2 < kMaxWindows ? groups / 2 : kMaxWindows;
  }
}

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
  uint32_t touched[kWarp];  // nobody reads it
};

// Lists the blocks that begin in window `w` of a warp, as items from `count`
// on; for the whole warp. `entry` and `next_entry` are this lane's of that
// window and of the next one. Returns the number of items.
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
    shared->items[count + __popc(starts & LowerLanes())] = MakeBlockItem(
        w * kWarp + lane, ends ? to_head : kSumBlock, first && ends, first);
  }
  return count + __popc(starts);
}

// Lists the blocks that begin in the windows of a warp, from entry `begin` on;
// for the whole warp. Returns their number.
template <class Reduce>
__device__ int ListWindows(const Reduce& reduce, int32_t begin, int num_windows,
                           int sub, uint32_t sentinel,
                           WindowShared<typename Reduce::Storage>* shared) {
  SlotPosition entries[kMaxWindows + 1];
  uint32_t last_slot = sentinel;
  uint32_t touched = 0;
#pragma unroll
  for (int w = 0; w <= kMaxWindows; ++w) {
    if (w > num_windows) break;
    entries[w] = reduce.EntryAt(begin + w * kWarp + Lane());
    const uint32_t slot = static_cast<uint32_t>(entries[w] >> 32);
    const auto* const gradient = reduce.Gradient(entries[w]);
    shared->gradients[w * kWarp + Lane()] = gradient;
    // Of the entries behind the windows, those that their last row goes on to.
    const bool wanted = w < num_windows || slot == last_slot;
    if (reduce.IsShort() && wanted) touched ^= reduce.Touch(gradient);
    if (wanted) reduce.PrefetchShare(gradient, sub);
    last_slot = __shfl_sync(kAllLanes, slot, kWarp - 1);
  }
  int count = 0;
#pragma unroll
  for (int w = 0; w < kMaxWindows; ++w) {
    if (w == num_windows) break;
    count = ListBlocks(reduce, begin, w, entries[w], entries[w + 1], sentinel,
                       count, shared);
  }
  if (reduce.IsShort()) shared->touched[Lane()] = touched;
  __syncwarp();
  return count;
}

// What happens to the sums is up to the sink, which is called by whole groups:
//   Prefetch<kWidth>(slot, group)       asks for a row ahead of time
//   Row<kWidth>(slot, group, gradient)  takes a row's sum; gradient(column) is
//                                       one column vector of it
template <class Access, class Sink, int kWidth>
__global__ __launch_bounds__(kReduceThreads, 12) void ReduceKernel(
    const __grid_constant__ ReduceArgs a,
    const __grid_constant__ typename Sink::Args sink_args) {
  using Storage = typename Access::Storage;
  __shared__ WindowShared<Storage> windows[kReduceWarps];
  __shared__ typename Sink::Shared shared[kReduceWarps];
  WaitForPrevious();
  if (*a.active == 0) return;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int64_t index = int64_t{blockIdx.x} * kReduceWarps + warp;
  const int64_t begin = index / a.warps_per_window * a.windows_per_warp * kWarp;
  if (begin >= a.n) return;
  const LaneGroup group = MakeLaneGroup(a.shape.lanes);
  const Reducer<Access, kWidth> reduce(a, group);
  WindowShared<Storage>& mine = windows[warp];
  const auto first = static_cast<int32_t>(begin);
  const int sub = static_cast<int>(index % a.warps_per_window);
  const int count =
      ListWindows(reduce, first, a.windows_per_warp, sub, a.sentinel, &mine);
  Sink sink(sink_args, a.shape, &shared[warp]);
  const int groups = kWarp / a.shape.lanes;
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
  const unsigned blocks = NumBlocks(warps, kReduceWarps);
  const auto kernel = width == 4 ? ReduceKernel<Access, Sink, 4>
                                 : ReduceKernel<Access, Sink, 1>;
  return LaunchNext<kReduceThreads>(stream, kernel, blocks, args, sink);
}

}  // namespace oneemb::gpu
