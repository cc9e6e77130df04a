// What a cached table knows of each slot of its device tier.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace oneemb {

enum SlotState : uint32_t {
  kSlotFree = 0,
  kSlotReserved,  // for a key without a row: staged, and not yet updated
  kSlotClean,     // the row is as the Store has it
  kSlotDirty,     // the row is newer, or the Store has none
};

struct SlotResidency {
  uint32_t entry;  // of the index (core/bucket.h), where the slot's key is
  uint32_t state;
};
static_assert(sizeof(SlotResidency) == 2 * sizeof(uint32_t),
              "a row of the uint32[capacity, 2] leaf");

// A row that a later batch was said to want is as if a batch that is so many
// before the current one had been the last to want it: younger than what is
// evicted, where the cache has room for more batches than that, and older than
// all that this step has staged.
constexpr uint32_t kAnnouncedAge = 16;

ONEEMB_HD uint32_t AnnouncedClock(uint64_t staged) {
  return staged < kAnnouncedAge
             ? 0
             : static_cast<uint32_t>(staged - uint64_t{kAnnouncedAge});
}

// Whether a clock is before another. They wrap around.
ONEEMB_HD bool IsBefore(uint32_t clock, uint32_t other) {
  return static_cast<int32_t>(other - clock) > 0;
}

// Which slots may be evicted.
enum class Victims {
  kAny,
  kClean,  // those whose row the Store has, or that have none
};

// A slot that is to be evicted, as long as it has this clock.
struct TierVictim {
  int32_t slot;
  uint32_t clock;
};

}  // namespace oneemb
