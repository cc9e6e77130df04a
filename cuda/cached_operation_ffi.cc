#include "cuda/cached_operation_ffi.h"

#include <new>
#include <utility>

#include "cuda/pinned.h"

namespace oneemb::gpu {
namespace {

Board* Cast(void* board) { return static_cast<Board*>(board); }

}  // namespace

struct CachedOperation::FoundMemory {
  // For the keys themselves too, up to `count`; 0: they stay where they are.
  explicit FoundMemory(int64_t count)
      : state(TakeBuffer(PinnedBuffers(), int64_t{sizeof(PlaceState)})) {
    if (count > 0) {
      keys = TakeBuffer(PinnedBuffers(), count * int64_t{sizeof(Key)});
    }
    ok = state != nullptr && (keys != nullptr || count == 0);
  }
  GpuTier::Found found() const {
    return {place, reinterpret_cast<PlaceState*>(state.get()),
            reinterpret_cast<Key*>(keys.get())};
  }

  const SourceBuffer state;
  SourceBuffer keys;
  bool ok;
  PlaceArgs place{};
};

cudaError_t CachedOperation::Begin(cudaStream_t stream,
                                   const CachedCall& cached,
                                   std::shared_ptr<TableStore> store) {
  stream_ = stream;
  store_ = std::move(store);
  run_ = cached.run;
  view_ = cached.call.table;
  ids_ = cached.call.ids;
  // Lists that the rules point to do not outlive the handler.
  rules_.keys = cached.call.rules.keys;
  rules_.embedding_dim = cached.call.rules.embedding_dim;
  places_.counters = view_.counters;
  places_.generation = cached.generation;
  places_.nonce = cached.nonce;
  ONEEMB_RETURN_IF_CUDA_ERROR(RowCarrier::Of(&carrier_));
  return StreamCaller::Of(stream, &caller_);
}

BoardStep CachedOperation::BoardWriter() const {
  return
      [this](void* board) { return WriteBoard(stream_, places_, Cast(board)); };
}

BoardStep CachedOperation::BoardReader(bool writes) const {
  return [this, writes](void* board) {
    return ReadBoard(stream_, places_, writes, Cast(board));
  };
}

BoardStep CachedOperation::FindMissingTo(FoundMemory* memory) const {
  return [this, memory](void* board) {
    ONEEMB_RETURN_IF_CUDA_ERROR(BoardWriter()(board));
    ONEEMB_RETURN_IF_CUDA_ERROR(
        FindMissing(stream_, view_, rules_, ids_, space_.find, &memory->place));
    const GpuTier::Found found = memory->found();
    return CopyFound(stream_, found.place, found.state, found.keys);
  };
}

cudaError_t CachedOperation::Serve(const Work& work, void* memory) const {
  Board* const board = Cast(memory);
  GpuTier tier(stream_, carrier_, view_, rules_, ids_, space_, board->counters,
               &board->generation);
  const TieredTable table{&tier, store_, board->nonce, run_};
  board->verdict = 0;
  try {
    board->verdict = work(&tier, table, board) ? 1 : 0;
  } catch (const std::bad_alloc&) {
    return cudaErrorMemoryAllocation;
  }
  return tier.error();
}

cudaError_t CachedOperation::ServeFound(const FoundMemory& memory,
                                        const Work& work, void* board) const {
  const auto with_found = [&](GpuTier* tier, const TieredTable& table,
                              Board* books) {
    tier->UseFound(memory.found());
    const bool done = work(tier, table, books);
    // What is not kept waits for the stream.
    if (done && tier->keeps()) caller_->Keep(tier->TakeKept());
    return done;
  };
  return Serve(with_found, board);
}

cudaError_t CachedOperation::Meet(bool writes, const Work& work) const {
  cudaError_t failed = cudaSuccess;
  ONEEMB_RETURN_IF_CUDA_ERROR(caller_->Meet(
      BoardWriter(), [&](void* board) { failed = Serve(work, board); },
      BoardReader(writes)));
  return failed;
}

cudaError_t CachedOperation::MeetMissing(const Work& work) const {
  FoundMemory memory(0);
  if (!memory.ok) return cudaErrorMemoryAllocation;
  cudaError_t failed = cudaSuccess;
  const BoardStep find = FindMissingTo(&memory);
  const auto find_and_clear = [&](void* board) {
    ONEEMB_RETURN_IF_CUDA_ERROR(find(board));
    return ClearCollectSpace(stream_, space_.collect);
  };
  ONEEMB_RETURN_IF_CUDA_ERROR(caller_->Meet(
      find_and_clear,
      [&](void* board) { failed = ServeFound(memory, work, board); },
      BoardReader(true)));
  return failed;
}

cudaError_t CachedOperation::TellMissing(const Work& work) const {
  const auto memory = std::make_shared<FoundMemory>(ids_.size);
  if (!memory->ok) return cudaErrorMemoryAllocation;
  const BoardStep find = FindMissingTo(memory.get());
  const auto find_and_touch = [&](void* board) {
    ONEEMB_RETURN_IF_CUDA_ERROR(find(board));
    return TouchFoundAhead(stream_, memory->place);
  };
  return caller_->Tell(find_and_touch,
                       [self = *this, memory, work](void* board) {
                         (void)self.ServeFound(*memory, work, board);
                       });
}

cudaError_t CachedOperation::Ask(bool writes, const Work& work) const {
  return caller_->Ask(
      BoardWriter(),
      [self = *this, work](void* board) { (void)self.Serve(work, board); },
      BoardReader(writes), writes);
}

cudaError_t CachedOperation::AskToCount(const LookupState* found,
                                        const Work& work) const {
  static_assert(sizeof(LookupState) == 2 * sizeof(uint32_t),
                "both words are looked at");
  return caller_->AskUnlessZero(
      BoardWriter(),
      [self = *this, work](void* board) { (void)self.Serve(work, board); },
      &found->stale, 2);
}

}  // namespace oneemb::gpu
