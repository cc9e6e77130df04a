// What a cached table knows of each slot of its device tier.
#pragma once

#include <cstdint>

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
