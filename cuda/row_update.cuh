// One optimizer step of one row by the lanes that share it. The math is that of
// core/optimizer_math.h; a row is laid out as core/row_layout.h says.
#pragma once

#include <cstdint>

#include "core/optimizer_math.h"
#include "core/summation.h"
#include "cuda/place.h"
#include "cuda/reduce.cuh"

namespace oneemb::gpu {

constexpr int kMaxSums = 2;

// Sums over columns in the order of the eight lanes of core/summation.h, a tile
// of columns after another. Room for a warp, which its groups share out.
struct ColumnSumShared {
  float terms[kMaxSums][4 * kWarp];
  float lanes[kMaxSums][kWarp][kColumnLanes];
};

template <int kSums, int kWidth>
class ColumnSums {
 public:
  __device__ ColumnSums(ColumnSumShared* shared, const LaneGroup& group)
      : shared_(shared), group_(group), index_(group.number) {
    for (int j = group.lane; j < kColumnLanes; j += group.lanes) {
      for (int s = 0; s < kSums; ++s) shared_->lanes[s][index_][j] = 0.0F;
    }
    group_.Sync();
  }

  // Adds the terms of columns [tile, tile + lanes * kWidth) up to `dim`; this
  // lane has those from tile + lane * kWidth on. A tile but the last is a whole
  // number of eight columns.
  __device__ void Add(int tile, int dim, const float (&terms)[kSums][kWidth]) {
    float* const room[] = {Terms(0), Terms(kSums - 1)};
    for (int s = 0; s < kSums; ++s) {
      for (int i = 0; i < kWidth; ++i) {
        room[s][group_.lane * kWidth + i] = terms[s][i];
      }
    }
    group_.Sync();
    const int left = dim - tile;
    const int columns =
        left < group_.lanes * kWidth ? left : group_.lanes * kWidth;
    for (int j = group_.lane; j < kColumnLanes; j += group_.lanes) {
      for (int s = 0; s < kSums; ++s) {
        float sum = shared_->lanes[s][index_][j];
        for (int c = j; c < columns; c += kColumnLanes) sum += room[s][c];
        shared_->lanes[s][index_][j] = sum;
      }
    }
    group_.Sync();
  }

  __device__ float Total(int s) const {
    return AddLanes(shared_->lanes[s][index_]);
  }

 private:
  __device__ float* Terms(int s) const {
    return shared_->terms[s] + index_ * group_.lanes * kWidth;
  }

  ColumnSumShared* shared_;
  const LaneGroup& group_;
  int index_;  // of the group in its warp
};

// The sink of an update: sums become steps of the optimizer.
template <class Optimizer>
class UpdateSink {
 public:
  struct Args {
    uint32_t* rows;
    int64_t row_words;
    uint32_t* clock;
    SlotResidency* residency;  // of a cached table, whose clock `stage` has set
    const float* grad_scale;
    const PlaceState* state;
  };
  struct Empty {};
  using Shared =
      std::conditional_t<(Optimizer::kSums > 0), ColumnSumShared, Empty>;
  using Scalars = typename Optimizer::Scalars;
  static constexpr int kFields = Optimizer::kStateFields;
  static constexpr bool kIsStateless =
      kFields == 0 && Optimizer::kRowWords == 0;

  __device__ UpdateSink(const Args& args, const RowShape& shape, Shared* shared)
      : a_(args),
        shape_(shape),
        shared_(shared),
        scalars_(*reinterpret_cast<const Scalars*>(args.state->scalars)),
        grad_scale_(*args.grad_scale),
        step_(args.state->step) {}

  template <int kWidth, class Gradient>
  __device__ void Row(uint32_t slot, const LaneGroup& group,
                      const Gradient& gradient) {
    if (scalars_.decay.any()) {
      Step<kWidth, true>(slot, group, gradient);
    } else {
      Step<kWidth, false>(slot, group, gradient);
    }
    if (group.lane != 0) return;
    if (a_.residency != nullptr) {
      a_.residency[slot].state = kSlotDirty;
    } else {
      a_.clock[slot] = step_;
    }
  }

  // Asks for the lines of a row that a column and its state are in.
  __device__ void Prefetch(uint32_t slot, int column) const {
    const uint32_t* const row = a_.rows + slot * a_.row_words + column;
#pragma unroll
    for (int f = 0; f < 1 + kFields; ++f) PrefetchLine(row + f * shape_.dim);
  }

 private:
  static constexpr int kSums = Optimizer::kSums;

  // The embedding and the state in the columns of this lane.
  template <int kWidth>
  struct Fields {
    Columns<kWidth> values[1 + kFields];

    __device__ void Load(const float* row, int dim, int column) {
#pragma unroll
      for (int f = 0; f < 1 + kFields; ++f) {
        values[f] = LoadFloats<kWidth>(row + f * dim + column);
      }
    }
    __device__ void Store(float* row, int dim, int column) const {
#pragma unroll
      for (int f = 0; f < 1 + kFields; ++f) {
        StoreFloats<kWidth>(row + f * dim + column, values[f]);
      }
    }
    // The state of one column, as the optimizer wants it.
    __device__ void GetState(int i, float* state) const {
#pragma unroll
      for (int f = 0; f < kFields; ++f) state[f] = values[1 + f].v[i];
    }
    __device__ void SetState(int i, const float* state) {
#pragma unroll
      for (int f = 0; f < kFields; ++f) values[1 + f].v[i] = state[f];
    }
  };

  template <int kWidth, class Gradient>
  __device__ Columns<kWidth> Scaled(const Gradient& gradient, int column) {
    Columns<kWidth> g = gradient(column);
    if (grad_scale_ != 1.0F) {
#pragma unroll
      for (int i = 0; i < kWidth; ++i) g.v[i] *= grad_scale_;
    }
    return g;
  }

  template <int kWidth, bool kDecays, class Gradient>
  __device__ void Step(uint32_t slot, const LaneGroup& group,
                       const Gradient& gradient) {
    const int dim = shape_.dim;
    const int step = group.lanes * kWidth;
    uint32_t* const words = a_.rows + slot * a_.row_words;
    float* const row = reinterpret_cast<float*>(words);
    typename Optimizer::Row row_scalars{};
    if constexpr (kSums > 0) {
      SumTerms<kWidth, kDecays>(row, words, group, gradient, &row_scalars);
    } else if constexpr (Optimizer::kRowWords > 0) {
      BeginRow(nullptr, words, group, &row_scalars);
    }
    for (int c = group.lane * kWidth; c < dim; c += step) {
      Fields<kWidth> fields;
      fields.Load(row, dim, c);
      const Columns<kWidth> g = Scaled<kWidth>(gradient, c);
#pragma unroll
      for (int i = 0; i < kWidth; ++i) {
        float state[kFields + 1];
        fields.GetState(i, state);
        ColumnStep<Optimizer, kDecays>(scalars_, row_scalars, g.v[i],
                                       &fields.values[0].v[i], state);
        fields.SetState(i, state);
      }
      fields.Store(row, dim, c);
    }
  }

  // Every lane works on words of its own; one writes them back.
  __device__ void BeginRow(const float* sums, uint32_t* row,
                           const LaneGroup& group,
                           typename Optimizer::Row* row_scalars) {
    uint32_t* const in_row = row + (1 + kFields) * shape_.dim;
    uint32_t words[Optimizer::kRowWords + 1];
    for (int i = 0; i < Optimizer::kRowWords; ++i) words[i] = in_row[i];
    group.Sync();
    *row_scalars = Optimizer::BeginRow(scalars_, shape_.dim, sums, words);
    if (group.lane != 0) return;
    for (int i = 0; i < Optimizer::kRowWords; ++i) in_row[i] = words[i];
  }

  template <int kWidth, bool kDecays, class Gradient>
  __device__ void SumTerms(float* row, uint32_t* words, const LaneGroup& group,
                           const Gradient& gradient,
                           typename Optimizer::Row* row_scalars) {
    const int dim = shape_.dim;
    const int step = group.lanes * kWidth;
    ColumnSums<kSums, kWidth> sums(shared_, group);
    for (int tile = 0; tile < dim; tile += step) {
      float terms[kSums][kWidth] = {};
      const int c = tile + group.lane * kWidth;
      if (c < dim) {
        Fields<kWidth> fields;
        fields.Load(row, dim, c);
        const Columns<kWidth> g = Scaled<kWidth>(gradient, c);
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
          float state[kFields + 1];
          float of_column[kSums];
          fields.GetState(i, state);
          ColumnTerms<Optimizer, kDecays>(
              scalars_, g.v[i], fields.values[0].v[i], state, of_column);
          fields.SetState(i, state);
          for (int s = 0; s < kSums; ++s) terms[s][i] = of_column[s];
        }
        fields.Store(row, dim, c);
      }
      sums.Add(tile, dim, terms);
    }
    float totals[kSums];
    for (int s = 0; s < kSums; ++s) totals[s] = sums.Total(s);
    BeginRow(totals, words, group, row_scalars);
  }

  const Args& a_;
  const RowShape& shape_;
  Shared* shared_;
  // By value: what is behind pointers would be read again for each row.
  const Scalars scalars_;
  const float grad_scale_;
  const uint32_t step_;
};

}  // namespace oneemb::gpu
