// A device tier on a GPU, for a function that meets its stream: it works on
// that stream, waits for it, and sees all sizes.
#pragma once

#include <cstdint>
#include <vector>

#include "core/table_view.h"
#include "cuda/launch.h"
#include "cuda/place.h"
#include "cuda/stream_call.h"
#include "cuda/tier.h"
#include "tier/device_tier.h"

namespace oneemb::gpu {

// The memory on the device that a tier works in.
struct TierSpace {
  void* find;     // of FindMissing
  void* collect;  // of CollectSlots
  uint32_t* bins;
  uint32_t* words;  // [4]
  int32_t* slots;
  SlotAdmission* admissions;
  SlotDescription* descriptions;
  char* rows;  // two pieces of StreamCaller::kTransferBytes
};
TierSpace TakeTierSpace(const TableRules& rules, int64_t capacity, int64_t n,
                        Workspace* workspace);

int64_t TierBytes(const TableRules& rules, int64_t capacity, int64_t n);

// Bytes of a flag in a workspace.
constexpr int64_t kFlagBytes = 256;

class GpuTier final : public DeviceTier {
 public:
  // What it is given outlives it; `view` and `ids` are on the device.
  GpuTier(StreamCaller* caller, const TableView& view, const TableRules& rules,
          const IdsView& ids, const TierSpace& space, uint64_t* counters,
          uint32_t* generation)
      : DeviceTier(view.capacity, view.row_words, counters, generation),
        caller_(caller),
        stream_(caller->stream()),
        view_(view),
        rules_(rules),
        ids_(ids),
        space_(space) {}

  // The first error of the device, which made a function return false.
  cudaError_t error() const { return error_; }

  bool Digest(uint64_t* digest) override;
  bool FindMissing(std::vector<Key>* missing) override;
  bool FindMissingAndTouch(uint32_t now, std::vector<Key>* missing,
                           int64_t* resident, uint64_t* digest) override;
  bool ChooseVictims(uint32_t now, int64_t count, Victims which,
                     std::vector<int32_t>* slots) override;
  bool TakeVictims(uint32_t now, int64_t count, std::vector<TierVictim>* queue,
                   std::vector<int32_t>* slots) override;
  bool FindDirty(std::vector<int32_t>* slots) override;
  bool Describe(const std::vector<int32_t>& slots,
                std::vector<SlotEntry>* entries) override;
  bool ReadRows(const int32_t* slots, int64_t count, char* rows) override;
  bool Evict(const std::vector<int32_t>& slots) override;
  bool Admit(const std::vector<Admission>& admissions, uint32_t now,
             const char* rows) override;
  void EndStage(bool /*none_reserved*/) override {}

  // Any array, by way of pinned memory.
  bool ToHost(const void* device, int64_t bytes, void* host);
  bool ToDevice(const void* host, int64_t bytes, void* device);
  // Row from[i] of `rows` goes to row to[i] of an array on the device.
  bool PutRows(const char* rows, const std::vector<int64_t>& from,
               const std::vector<int32_t>& to, uint32_t* array);

 private:
  bool Ok(cudaError_t error);
  bool Wait();
  bool FindMissing(const uint32_t* now, std::vector<Key>* missing,
                   PlaceState* state);
  bool Collect(int64_t first, int64_t end, const SlotFilter& filter,
               int64_t most, std::vector<int32_t>* slots);
  int64_t used() const;
  // Rows that are moved at once.
  int64_t chunk_rows() const;

  StreamCaller* const caller_;
  const cudaStream_t stream_;
  const TableView& view_;
  const TableRules& rules_;
  const IdsView& ids_;
  const TierSpace space_;
  cudaError_t error_ = cudaSuccess;
};

}  // namespace oneemb::gpu
