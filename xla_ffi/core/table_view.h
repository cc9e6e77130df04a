// A table as the kernels see it: its arrays and the rules they follow.
#pragma once

#include <cstdint>

#include "core/bucket.h"
#include "core/counters.h"
#include "core/ids.h"
#include "core/initializers.h"
#include "core/macros.h"
#include "core/optimizer_config.h"
#include "core/residency.h"

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
  // [capacity], the step that last touched a slot; of a cached table, the last
  // batch staged that wanted it, or what core/residency.h says.
  uint32_t* clock;
  uint64_t* counters;  // [kNumCounters]
  uint64_t* layout_version;
  // [capacity] of a cached table; null when all rows are in device memory.
  SlotResidency* residency = nullptr;
  // No slot is reserved, as is known without a look at each of them.
  bool none_reserved = false;

  ONEEMB_HD bool cached() const { return residency != nullptr; }
  // Slots that were ever in use: those of the rows, where a table is not
  // cached. Counters are an array like any other, which a program may have
  // changed: no more than there are.
  ONEEMB_HD int64_t slots_used() const {
    const uint64_t used = counters[cached() ? kSlotsUsed : kRows];
    return used < static_cast<uint64_t>(capacity) ? static_cast<int64_t>(used)
                                                  : capacity;
  }
  // Whether a slot is set aside for a key that has no row yet.
  ONEEMB_HD bool IsReserved(int64_t slot) const {
    return cached() && !none_reserved && residency[slot].state == kSlotReserved;
  }
  ONEEMB_HD uint32_t* Row(int64_t slot) const {
    return rows + slot * row_words;
  }
};

// Element types of activations and gradients.
enum class FloatType { kFloat32, kBFloat16, kFloat16 };

ONEEMB_HD int64_t FloatBytes(FloatType type) {
  return type == FloatType::kFloat32 ? 4 : 2;
}

}  // namespace oneemb
