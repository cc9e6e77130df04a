// A table as the kernels see it: its arrays and the rules they follow.
#pragma once

#include <cstdint>

#include "core/bucket.h"
#include "core/initializers.h"
#include "core/optimizer_config.h"
#include "cpu/ids.h"

namespace oneemb {

// What is fixed for the life of a table.
struct TableRules {
  KeyRules keys;
  RowInitializers initializers;
  OptimizerConfig optimizer;
  int64_t embedding_dim;
};

struct TableView {
  IndexView index;
  uint32_t* rows;  // [capacity, row_words]
  int64_t row_words;
  int64_t capacity;
  uint32_t* clock;     // [capacity], the step that last touched a slot
  uint64_t* counters;  // [kNumCounters]
  uint64_t* layout_version;

  uint32_t* Row(int64_t slot) const { return rows + slot * row_words; }
};

// Element types of activations and gradients.
enum class FloatType { kFloat32, kBFloat16, kFloat16 };

inline int64_t FloatBytes(FloatType type) {
  return type == FloatType::kFloat32 ? 4 : 2;
}

}  // namespace oneemb
