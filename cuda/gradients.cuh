// Where a warp reads its gradients, for cuda/reduce.cuh.
#pragma once

#include <cstdint>

#include "cuda/block_list.cuh"
#include "cuda/lanes.h"
#include "cuda/vector.cuh"

namespace oneemb::gpu {

// The widest row of gradients that a warp brings to shared memory.
constexpr int kStagedBytes = 64;

// Gradients where the caller has them: wide rows.
template <class PackedElements>
class GradientsInPlace {
 public:
  using Elements = PackedElements;
  using Storage = typename Elements::Storage;
  static constexpr bool kStaged = false;
  struct Shared {};

  __device__ GradientsInPlace(Shared* /*shared*/,
                              const Storage* const* gradients,
                              const RowShape& /*shape*/)
      : gradients_(gradients) {}

  __device__ void Ask(int /*begin*/, int /*end*/) const {}
  __device__ void Await() const {}

  // Columns from `column` on of the gradients from entry `first` on.
  struct Run {
    const Storage* const* gradients;
    int column;

    __device__ typename Elements::Type Get(int k) const {
      return Elements::LoadConstant(gradients[k] + column);
    }
  };
  __device__ Run From(int first, int column) const {
    return {gradients_ + first, column};
  }

 private:
  const Storage* const* gradients_;
};

// Gradients that a warp first brings to shared memory, all at once: narrow
// rows. In place, each would take a line of the first-level cache, of which it
// is a part, and a block would be read a few at a time.
template <class PackedElements>
class StagedGradients {
 public:
  using Elements = PackedElements;
  using Storage = typename Elements::Storage;
  using Word = typename Elements::Type;
  static constexpr bool kStaged = true;
  struct Shared {
    Word words[(kMaxWindows + 1) * kWarp * kStagedBytes / sizeof(Word)];
  };

  __device__ StagedGradients(Shared* shared, const Storage* const* gradients,
                             const RowShape& shape)
      : shared_(shared), gradients_(gradients), shape_(shape) {}

  // Whether rows are narrow: each lane has one column vector, and all windows
  // of a warp find room.
  static bool Fits(const RowShape& shape) {
    return shape.dim <= shape.lanes() * kWidth &&
           shape.lanes() * int{sizeof(Word)} <= kStagedBytes;
  }

  // Asks for the gradients of entries [begin, end).
  __device__ void Ask(int begin, int end) const {
    const int lane = shape_.LaneOf(Lane());
    const int column = lane * kWidth;
    if (column >= shape_.dim) return;
    const int step = shape_.groups();
    for (int e = begin + shape_.GroupOf(Lane()); e < end; e += step) {
      Copy(&shared_->words[(e << shape_.lane_bits) + lane],
           gradients_[e] + column);
    }
  }

  // Waits until all that was asked for is there; for the whole warp.
  __device__ void Await() const {
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncwarp();
  }

  struct Run {
    const Word* words;
    int lane_bits;

    __device__ Word Get(int k) const { return words[k << lane_bits]; }
  };
  __device__ Run From(int first, int column) const {
    return {shared_->words + (first << shape_.lane_bits) +
                static_cast<unsigned>(column) / kWidth,
            shape_.lane_bits};
  }

 private:
  // Without waiting for it, where the hardware can: from four bytes on. (What
  // is stored is there for the others by Await's second line.)
  static __device__ __forceinline__ void Copy(Word* to, const Storage* from) {
    constexpr int kBytes = sizeof(Word);
    const auto shared = static_cast<uint32_t>(__cvta_generic_to_shared(to));
    if constexpr (kBytes == 16) {
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared),
                   "l"(from)
                   : "memory");
    } else if constexpr (kBytes >= 4) {
      asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(shared),
                   "l"(from), "n"(kBytes)
                   : "memory");
    } else {
      *to = Elements::LoadConstant(from);
    }
  }

  static constexpr int kWidth = Elements::kColumns;

  Shared* shared_;
  const Storage* const* gradients_;
  const RowShape& shape_;
};

}  // namespace oneemb::gpu
