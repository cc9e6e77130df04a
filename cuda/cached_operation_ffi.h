// A call for a cached table on one stream, and its work on the host.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <functional>
#include <memory>

#include "cuda/board.h"
#include "cuda/gpu_tier.h"
#include "cuda/row_carrier.h"
#include "cuda/stream_call.h"
#include "ffi/decode_cached_ffi.h"

namespace oneemb::gpu {

// What is done on the host. Returns the verdict for the kernels that follow.
using Work = std::function<bool(GpuTier*, const TieredTable&, Board*)>;

// Knows all that a function on the host has to know, and may be copied.
class CachedOperation {
 public:
  cudaError_t Begin(cudaStream_t stream, const CachedCall& cached,
                    std::shared_ptr<TableStore> store);

  BoardPlaces& places() { return places_; }
  void UseSpace(const TierSpace& space) { space_ = space; }

  // Has `work` done where the stream is now, on a tier that it may use. With
  // `writes` the table's counters and generation become what it makes of them.
  // What has failed half-way would leave a table that is not in order: then the
  // call fails, and with it the program that would go on with the table.
  cudaError_t Meet(bool writes, const Work& work) const;
  // The same with `writes`, on a tier that knows which keys it lacks: they are
  // found before the host has a look.
  cudaError_t MeetMissing(const Work& work) const;

  // Has work done some time later on a tier that knows which keys it lacked,
  // and nothing else; what it does to the table's books is for nothing. The
  // stream sets the clocks of those that it has.
  cudaError_t TellMissing(const Work& work) const;

  // The same as Meet for work that only looks at the table's books: the stream
  // waits for it, and nobody for the stream. Work that `writes` comes after all
  // that was told before: a prefetch belongs to the table that it was given.
  cudaError_t Ask(bool writes, const Work& work) const;
  // For work that counts what a lookup found: the stream waits if that is
  // something.
  cudaError_t AskToCount(const LookupState* found, const Work& work) const;

 private:
  // Keys that the tier lacks, as they come to memory of the host.
  struct FoundMemory;

  BoardStep BoardWriter() const;
  BoardStep BoardReader(bool writes) const;
  BoardStep FindMissingTo(FoundMemory* found) const;
  cudaError_t Serve(const Work& work, void* board) const;
  cudaError_t ServeFound(const FoundMemory& found, const Work& work,
                         void* board) const;

  cudaStream_t stream_ = nullptr;
  StreamCaller* caller_ = nullptr;
  RowCarrier* carrier_ = nullptr;
  std::shared_ptr<TableStore> store_;
  int64_t run_ = 0;
  TableView view_{};
  IdsView ids_{};
  TableRules rules_{};
  TierSpace space_{};
  BoardPlaces places_{};
};

}  // namespace oneemb::gpu
