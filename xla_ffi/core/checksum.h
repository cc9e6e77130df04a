// The checksum of a lookup's context. `update` compares it before it trusts
// ids, tables and slots that have been through the caller's program, where one
// jax.tree.map over a gradient scales them along with it.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace oneemb {

// What one position of a batch adds to its lookup's checksum, which is the sum
// over all positions modulo 2^32: the same in any order. Zeros everywhere do
// not sum to zero. Of 32-bit steps, so that it runs in vectors.
ONEEMB_HD uint32_t PositionChecksum(uint32_t position, uint32_t id_low,
                                    uint32_t id_high, int32_t table,
                                    int32_t slot) {
  constexpr uint32_t kPrime1 = 0x9E3779B1U;
  constexpr uint32_t kPrime2 = 0x85EBCA77U;
  constexpr uint32_t kPrime3 = 0xC2B2AE3DU;
  constexpr uint32_t kPrime4 = 0x27D4EB2FU;
  uint32_t h = (position + 1) * kPrime1 + id_low;
  h = (h ^ (h >> 15)) * kPrime2 + id_high;
  h = (h ^ (h >> 13)) * kPrime3 + static_cast<uint32_t>(slot);
  h = (h ^ (h >> 16)) * kPrime4 + static_cast<uint32_t>(table);
  h = (h ^ (h >> 14)) * kPrime2;
  return h ^ (h >> 16);
}

}  // namespace oneemb
