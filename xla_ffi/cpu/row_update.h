// One optimizer step of one row, in loops that the compiler vectorises.
//
// A row is [embedding | field 0 | field 1 ... | row words | padding], see
// core/row_layout.h.
#pragma once

#include <cstdint>

#include "core/macros.h"
#include "core/optimizer_math.h"
#include "core/row_layout.h"
#include "core/summation.h"

namespace oneemb {

namespace row_update_internal {

constexpr int kMaxFields = 3;

// The storage of a row is uint32, since it holds more than floats. This is how
// it is read and written as floats, whoever else sees the same memory as words.
using RowFloat = float __attribute__((may_alias));

// The state of column c, on its way from the fields and back.
template <int kFields>
struct ColumnState {
  float values[kMaxFields];

  void Load(const RowFloat* f0, const RowFloat* f1, const RowFloat* f2,
            int64_t c) {
    if constexpr (kFields > 0) values[0] = f0[c];
    if constexpr (kFields > 1) values[1] = f1[c];
    if constexpr (kFields > 2) values[2] = f2[c];
  }

  void Store(RowFloat* f0, RowFloat* f1, RowFloat* f2, int64_t c) const {
    if constexpr (kFields > 0) f0[c] = values[0];
    if constexpr (kFields > 1) f1[c] = values[1];
    if constexpr (kFields > 2) f2[c] = values[2];
  }
};

// Every field comes by a pointer of its own and the scalars by value: then
// `restrict` holds, and the loops need no checks for overlap.
template <class Optimizer, bool kDecays>
void SumTerms(const typename Optimizer::Scalars s, int64_t dim,
              const float* ONEEMB_RESTRICT g, const RowFloat* ONEEMB_RESTRICT w,
              RowFloat* ONEEMB_RESTRICT f0, RowFloat* ONEEMB_RESTRICT f1,
              RowFloat* ONEEMB_RESTRICT f2, float* sums) {
  constexpr int kSums = Optimizer::kSums;
  float lanes[kSums][kColumnLanes] = {};
  const auto add = [&](int64_t c, int lane) {
    ColumnState<Optimizer::kStateFields> state;
    float terms[kSums];
    state.Load(f0, f1, f2, c);
    ColumnTerms<Optimizer, kDecays>(s, g[c], w[c], state.values, terms);
    state.Store(f0, f1, f2, c);
    for (int i = 0; i < kSums; ++i) lanes[i][lane] += terms[i];
  };
  int64_t c = 0;
  for (; c + kColumnLanes <= dim; c += kColumnLanes) {
    for (int j = 0; j < kColumnLanes; ++j) add(c + j, j);
  }
  for (int j = 0; c + j < dim; ++j) add(c + j, j);
  for (int i = 0; i < kSums; ++i) sums[i] = AddLanes(lanes[i]);
}

template <class Optimizer, bool kDecays>
void StepColumns(const typename Optimizer::Scalars s,
                 const typename Optimizer::Row row_scalars, int64_t dim,
                 const float* ONEEMB_RESTRICT g, RowFloat* ONEEMB_RESTRICT w,
                 RowFloat* ONEEMB_RESTRICT f0, RowFloat* ONEEMB_RESTRICT f1,
                 RowFloat* ONEEMB_RESTRICT f2) {
  for (int64_t c = 0; c < dim; ++c) {
    ColumnState<Optimizer::kStateFields> state;
    state.Load(f0, f1, f2, c);
    float weight = w[c];
    ColumnStep<Optimizer, kDecays>(s, row_scalars, g[c], &weight, state.values);
    w[c] = weight;
    state.Store(f0, f1, f2, c);
  }
}

template <class Optimizer, bool kDecays>
void StepRow(const typename Optimizer::Scalars& s, int64_t dim, const float* g,
             uint32_t* row) {
  constexpr int kFields = Optimizer::kStateFields;
  static_assert(kFields <= kMaxFields, "ColumnState has no more pointers");
  RowFloat* const w = reinterpret_cast<RowFloat*>(row);
  RowFloat* const f0 = kFields > 0 ? w + dim : nullptr;
  RowFloat* const f1 = kFields > 1 ? w + 2 * dim : nullptr;
  RowFloat* const f2 = kFields > 2 ? w + 3 * dim : nullptr;
  uint32_t* const words = row + (1 + kFields) * dim;
  typename Optimizer::Row row_scalars{};
  if constexpr (Optimizer::kSums > 0) {
    float sums[Optimizer::kSums];
    SumTerms<Optimizer, kDecays>(s, dim, g, w, f0, f1, f2, sums);
    row_scalars = Optimizer::BeginRow(s, dim, sums, words);
  } else if constexpr (Optimizer::kRowWords > 0) {
    row_scalars = Optimizer::BeginRow(s, dim, nullptr, words);
  }
  StepColumns<Optimizer, kDecays>(s, row_scalars, dim, g, w, f0, f1, f2);
}

}  // namespace row_update_internal

// Applies the summed and scaled gradient g[dim] to a row.
template <class Optimizer>
void UpdateRow(const typename Optimizer::Scalars& scalars, int64_t dim,
               const float* ONEEMB_RESTRICT g, uint32_t* ONEEMB_RESTRICT row) {
  using row_update_internal::StepRow;
  if (scalars.decay.any()) {
    StepRow<Optimizer, true>(scalars, dim, g, row);
  } else {
    StepRow<Optimizer, false>(scalars, dim, g, row);
  }
}

// Writes what stands behind the embedding of a new row: the optimizer's initial
// state, and zeros where the row is padded.
template <class Optimizer>
void InitState(const OptimizerConfig& config, int64_t dim, uint32_t* row) {
  using row_update_internal::RowFloat;
  RowFloat* const w = reinterpret_cast<RowFloat*>(row);
  for (int k = 0; k < Optimizer::kStateFields; ++k) {
    const float value = Optimizer::InitialField(config, k);
    RowFloat* const field = w + (1 + k) * dim;
    for (int64_t c = 0; c < dim; ++c) field[c] = value;
  }
  int64_t word = (1 + Optimizer::kStateFields) * dim;
  for (int i = 0; i < Optimizer::kRowWords; ++i) {
    row[word++] = Optimizer::InitialWord(config, i);
  }
  const int64_t end =
      RowWords(dim, Optimizer::kStateFields, Optimizer::kRowWords);
  while (word < end) row[word++] = 0;
}

}  // namespace oneemb
