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

#include "cuda/block_list.cuh"
#include "cuda/chain.cuh"
#include "cuda/gradients.cuh"
#include "cuda/reducer.cuh"

namespace oneemb::gpu {

// A block has few warps: its room is free only when the last of them is done,
// and some climb the tree while the others wait.
constexpr int kReduceWarps = 2;
constexpr int kReduceThreads = kReduceWarps * kWarp;

// Shares out the windows. A small batch has too few to keep the memory busy:
// then several warps share the blocks of one. Where several rows fit into a
// warp, the one block that a window of a hot row has would leave the other
// lanes idle: then a warp has several windows.
inline void ShareWindows(ReduceArgs* args) {
  const int groups = args->shape.groups();
  args->windows_per_warp = 1;
  args->window_warp_bits = 0;
  if (IsSmallBatch(args->n)) {
    args->window_warp_bits = groups > 1 ? 1 : 2;
  } else if (args->n <= (1 << 19)) {
    args->window_warp_bits = 1;
  } else if (groups > 1) {
    args->windows_per_warp =
        groups / 2 < kMaxWindows ? groups / 2 : kMaxWindows;
  }
}

// Where several warps share a window, the batch is so small that all of its
// gradients fit into the cache: warp `sub` of them asks for its share of each.
template <class Reduce>
__device__ void PrefetchWindow(
    const Reduce& reduce, const WindowSlots& slots, int sub,
    const WindowShared<typename Reduce::Storage>& shared) {
  reduce.PrefetchShare(shared.gradients[Lane()], sub);
  // Of the entries behind the window, those that its last row goes on to.
  const uint32_t last = __shfl_sync(kAllLanes, slots.windows[0], kWarp - 1);
  if (slots.windows[1] == last) {
    reduce.PrefetchShare(shared.gradients[kWarp + Lane()], sub);
  }
}

// Asks for what a group needs of the block that it sums next.
template <class Reduce, class Sink>
__device__ __forceinline__ void PrefetchNext(
    const Reduce& reduce, const WindowShared<typename Reduce::Storage>& shared,
    int next, const Sink& sink) {
  const BlockItem item = shared.items[next];
  if (!reduce.HasColumns()) return;
  PrefetchLine(shared.gradients[item.offset()] + reduce.FirstColumn());
  if (item.whole()) {
    sink.Prefetch(shared.slots[item.offset()], reduce.FirstColumn());
  }
}

// Where rows are narrow, a warp asks at once for all that its windows step.
template <class Storage, class Sink>
__device__ __forceinline__ void PrefetchRows(
    const WindowShared<Storage>& shared, int count, const Sink& sink) {
  for (int i = Lane(); i < count; i += kWarp) {
    const BlockItem item = shared.items[i];
    if (item.whole()) sink.Prefetch(shared.slots[item.offset()], 0);
  }
}

// Sums one block of the windows that begin at entry `first`, and with it all
// that is then complete; for a whole group. Whether the sum in this lane's
// columns is finite.
template <class Reduce, class Gradients, class Sink>
__device__ __forceinline__ bool SumItem(
    const Reduce& reduce, const Gradients& gradients,
    const WindowShared<typename Reduce::Storage>& shared, int32_t first,
    BlockItem item, Sink* sink) {
  constexpr int kWidth = Gradients::Elements::kColumns;
  bool finite = true;
  const auto sum_block = [&](int column) {
    const Columns<kWidth> sum =
        reduce.SumBlock(gradients.From(item.offset(), column), item.count());
    finite = finite && reduce.AllFinite(sum);
    return sum;
  };
  const int32_t entry = first + item.offset();
  const RowEntries row{item.first() ? entry : shared.continued[item.window()],
                       shared.slots[item.offset()]};
  bool is_root = item.whole();
  if (!is_root) {
    const int32_t block = (entry - row.begin) / kSumBlock;
    float* const partial = reduce.Partial(row, block);
    reduce.ForColumns(
        [&](int c) { StoreFloats<kWidth>(partial + c, sum_block(c)); });
    is_root = reduce.Climb(row, block);
  }
  if (is_root) {
    const float* const root = reduce.Partial(row, 0);
    sink->template Row<kWidth>(row.slot, reduce.group(), [&](int column) {
      return item.whole() ? sum_block(column)
                          : reduce.LoadPartial(root, column);
    });
  }
  return finite;
}

// Sums the blocks of a warp's windows, `stride` apart for each of its groups,
// which wait for each other after every block: a vote among the lanes of one
// group would be taken group by group.
template <class Reduce, class Gradients, class Sink>
__device__ __forceinline__ void SumItems(
    const Reduce& reduce, const Gradients& gradients,
    const WindowShared<typename Reduce::Storage>& shared, int32_t first,
    int begin, int count, int stride, Sink* sink) {
  const LaneGroup& group = reduce.group();
  for (; begin < count; begin += stride) {
    const int i = begin + group.number;
    bool finite = true;
    if (i < count) {
      if (!Gradients::kStaged && i + stride < count) {
        PrefetchNext(reduce, shared, i + stride, *sink);
      }
      finite = SumItem(reduce, gradients, shared, first, shared.items[i], sink);
    }
    const uint32_t damaged = __ballot_sync(kAllLanes, !finite);
    if ((damaged & group.mask) != 0) {
      const BlockItem item = shared.items[i];
      reduce.CountNonFinite(shared.gradients + item.offset(), item.count());
    }
  }
}

// Blocks of a multiprocessor at once: with more of them, registers run out.
template <class Gradients, class Sink>
constexpr int kReduceBlocks =
    !Gradients::kStaged && Sink::kIsStateless ? 16 : 12;

// What happens to the sums is up to the sink:
//   kIsStateless                        whether a row is its embedding alone
//   Prefetch(slot, column)              asks for a part of a row ahead of time
//   Row<kWidth>(slot, group, gradient)  takes a row's sum, for a whole group;
//                                       gradient(column) is one column vector
template <class Gradients, class Sink,
          int kBlocks = kReduceBlocks<Gradients, Sink>>
__global__ __launch_bounds__(kReduceThreads, kBlocks) void ReduceKernel(
    const __grid_constant__ ReduceArgs a,
    const __grid_constant__ typename Sink::Args sink_args) {
  __shared__ WindowShared<typename Gradients::Storage> windows[kReduceWarps];
  __shared__ typename Gradients::Shared staged[kReduceWarps];
  __shared__ typename Sink::Shared sink_shared[kReduceWarps];
  WaitForPrevious();
  if (*a.active == 0) return;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  // At most 2^29 entries, so at most as many warps.
  const uint32_t index = blockIdx.x * kReduceWarps + warp;
  const int sub = static_cast<int>(index) & (a.warps_per_window() - 1);
  const uint32_t begin =
      (index >> a.window_warp_bits) * a.windows_per_warp * kWarp;
  if (begin >= a.n) return;
  const auto first = static_cast<int32_t>(begin);
  const LaneGroup group = MakeLaneGroup(a.shape);
  const Reducer<typename Gradients::Elements> reduce(a, group);
  auto& shared = windows[warp];
  const WindowSlots slots = ReadWindows(reduce, first, &shared);
  // Searching for what begins where takes a while: gradients come meanwhile.
  const Gradients gradients(&staged[warp], shared.gradients, a.shape);
  const int own = a.windows_per_warp * kWarp;
  gradients.Ask(0, own);
  if (!Gradients::kStaged && a.window_warp_bits > 0) {
    PrefetchWindow(reduce, slots, sub, shared);
  }
  Sink sink(sink_args, a.shape, &sink_shared[warp]);
  const int count = ListWindows(reduce, first, slots, &shared);
  if (count > 0) gradients.Ask(own, shared.items[count - 1].end());
  if (Gradients::kStaged) PrefetchRows(shared, count, sink);
  gradients.Await();
  const int groups = a.shape.groups();
  SumItems(reduce, gradients, shared, first, sub * groups, count,
           groups << a.window_warp_bits, &sink);
}

// Launches it for rows read kWidth columns at a time.
template <class Sink, class Access, int kWidth>
cudaError_t LaunchReduceBy(cudaStream_t stream, const ReduceArgs& args,
                           const typename Sink::Args& sink) {
  using Elements = Packed<Access, kWidth>;
  using Staged = StagedGradients<Elements>;
  const auto kernel = Staged::Fits(args.shape)
                          ? ReduceKernel<Staged, Sink>
                          : ReduceKernel<GradientsInPlace<Elements>, Sink>;
  const int64_t warps =
      CeilDiv(args.n, args.windows_per_warp * kWarp) * args.warps_per_window();
  return LaunchNext<kReduceThreads>(stream, kernel,
                                    NumBlocks(warps, kReduceWarps), args, sink);
}

template <class Sink, class Access>
cudaError_t LaunchReduce(cudaStream_t stream, const ReduceArgs& args,
                         const typename Sink::Args& sink, int width) {
  if (args.n == 0) return cudaSuccess;
  return width == 4 ? LaunchReduceBy<Sink, Access, 4>(stream, args, sink)
                    : LaunchReduceBy<Sink, Access, 1>(stream, args, sink);
}

}  // namespace oneemb::gpu
