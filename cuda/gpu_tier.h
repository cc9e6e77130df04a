// A device tier on a GPU, for a function that meets its stream: it works on
// that stream, and waits where it has to see what came of it.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "core/table_view.h"
#include "cuda/launch.h"
#include "cuda/place.h"
#include "cuda/row_carrier.h"
#include "cuda/stream_call.h"
#include "cuda/stream_point.h"
#include "cuda/tier.h"
#include "tier/device_tier.h"

namespace oneemb::gpu {

// The memory on the device that a tier works in.
struct TierSpace {
  void* find;  // of FindMissing
  CollectSpace collect;
  int32_t* slots;
  SlotAdmission* admissions;
};
TierSpace TakeTierSpace(const TableRules& rules, int64_t capacity, int64_t n,
                        Workspace* workspace);

int64_t TierBytes(const TableRules& rules, int64_t capacity, int64_t n);

// Bytes of a flag in a workspace.
constexpr int64_t kFlagBytes = 256;

class GpuTier final : public DeviceTier {
 public:
  // What it is given outlives it; `view` and `ids` are on the device.
  GpuTier(cudaStream_t stream, RowCarrier* carrier, const TableView& view,
          const TableRules& rules, const IdsView& ids, const TierSpace& space,
          uint64_t* counters, uint32_t* generation)
      : DeviceTier(view.capacity, view.row_words, counters, generation),
        stream_(stream),
        carrier_(carrier),
        view_(view),
        rules_(rules),
        ids_(ids),
        space_(space) {}

  // Who has asked for no memory may not call CUDA either.
  ~GpuTier() override {
    if (kept_ != nullptr) Wait();
  }
  // The memory that the stream still needs until it comes here, if any.
  bool keeps() const { return kept_ != nullptr; }
  std::shared_ptr<const void> TakeKept() { return std::move(kept_); }

  // What was found before the host had a look: on the device, and its copy in
  // memory of the host.
  struct Found {
    PlaceArgs place;
    PlaceState* state;
    Key* keys;
  };
  // Its space is cleared.
  void UseFound(const Found& found) {
    found_ = found;
    clear_ = true;
  }

  // The first error of the device, which made a function return false.
  cudaError_t error() const { return error_; }

  BufferSource* memory() override { return carrier_; }
  bool Digest(uint64_t* digest) override;
  bool FindMissingAndTouch(uint32_t now, MissingKeys* missing,
                           uint64_t* digest) override;
  bool FindMissingAhead(MissingKeys* missing) override;
  bool ReadMissing(MissingKeys* missing) override;
  bool CountTouched(int64_t* resident) override;
  bool ExpectVictims(uint32_t now, int64_t count) override;
  bool ChooseVictims(uint32_t now, int64_t count, Victims which,
                     VictimList* victims) override;
  bool TakeVictims(uint32_t now, int64_t count, std::vector<TierVictim>* queue,
                   VictimList* victims) override;
  bool FindDirty(int64_t* cursor, int64_t most,
                 std::vector<SlotEntry>* dirty) override;
  bool ReadRows(const std::vector<int32_t>& slots, char* rows) override;
  bool Admit(const Exchange& exchange, uint32_t now,
             VictimList* victims) override;
  void LetGo(TakenRows* rows) override;
  void EndStage(bool /*none_reserved*/) override {}

  // Row i goes to row to[i] of an array on the device, if there is one.
  bool PutRows(const SourceVector<const char*>& rows,
               const std::vector<int32_t>& to, uint32_t* array);
  // A copy of an array on the device, which lasts as long as this; null on an
  // error.
  template <class T>
  const T* ToHost(const T* device, int64_t count) {
    T* const host = Pinned<T>(count);
    const bool ok = host != nullptr && Copy(device, count, host) && Wait();
    return ok ? host : nullptr;
  }
  // An array in memory of the host that copies can be made from, as long as
  // this lasts.
  template <class T>
  T* Pinned(int64_t count) {
    return static_cast<T*>(TakePinned(count * int64_t{sizeof(T)}));
  }
  // Between arrays on the device and pinned ones; nobody waits for it.
  template <class T>
  bool Copy(const T* from, int64_t count, T* to) {
    return CopyBytes(from, count * int64_t{sizeof(T)}, to);
  }
  bool Wait();

 private:
  // Keeps the first error of the device; whether there was none now.
  bool Ok(cudaError_t error);
  // What kernels have found before the host had a look.
  void TakeFound(MissingKeys* missing) const;
  void* TakePinned(int64_t bytes);
  bool CopyBytes(const void* from, int64_t bytes, void* to);
  // What is on its way is from or to memory that is kept here.
  struct Kept {
    std::vector<SourceBuffer> pinned;
    // Of victims. The last is theirs; kernels may still write to those before,
    // of which nobody wants to know any more.
    std::vector<SourceVector<Key>> dirty_victims;
    TakenRows rows;
    SourceBuffer near;  // on the device, for dirty rows
  };
  Kept* kept() {
    if (kept_ == nullptr) kept_ = std::make_shared<Kept>();
    return kept_.get();
  }
  bool ClearSpace();
  bool HandOver(AlignedBuffer* dirty_rows, VictimList* victims);
  bool BeginVictims(uint32_t now, int64_t count, Victims which);

  const cudaStream_t stream_;
  RowCarrier* const carrier_;
  const TableView& view_;
  const TableRules& rules_;
  const IdsView& ids_;
  const TierSpace space_;
  cudaError_t error_ = cudaSuccess;
  std::shared_ptr<Kept> kept_;
  StreamPoint counted_;  // where the stream has written what is counted
  Found found_{};
  bool clear_ = false;  // what there is to collect slots in
  const uint32_t* resident_ = nullptr;
  // Of the victims that are looked for.
  int64_t expected_ = 0;
  const SlotCounts* victim_counts_ = nullptr;
};

}  // namespace oneemb::gpu
