// Philox4x32-10: a random block as a pure function of a counter and a key.
//
// J. K. Salmon, M. A. Moraes, R. O. Dror and D. E. Shaw, "Parallel random
// numbers: as easy as 1, 2, 3", SC 2011.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace oneemb {

struct PhiloxBlock {
  uint32_t w[4];
};

namespace philox_internal {
constexpr int kRounds = 10;
constexpr uint32_t kMultiplier0 = 0xD2511F53;
constexpr uint32_t kMultiplier1 = 0xCD9E8D57;
constexpr uint32_t kWeyl0 = 0x9E3779B9;
constexpr uint32_t kWeyl1 = 0xBB67AE85;

// One round; the words go in and out through references, so that a loop over
// lanes keeps them in vector registers.
ONEEMB_HD void Round(uint32_t& w0, uint32_t& w1, uint32_t& w2, uint32_t& w3,
                     uint32_t key0, uint32_t key1) {
  const uint64_t product0 = uint64_t{kMultiplier0} * w0;
  const uint64_t product1 = uint64_t{kMultiplier1} * w2;
  w0 = static_cast<uint32_t>(product1 >> 32) ^ w1 ^ key0;
  w1 = static_cast<uint32_t>(product1);
  w2 = static_cast<uint32_t>(product0 >> 32) ^ w3 ^ key1;
  w3 = static_cast<uint32_t>(product0);
}
}  // namespace philox_internal

ONEEMB_HD PhiloxBlock Philox(const uint32_t counter[4], const uint32_t key[2]) {
  using namespace philox_internal;  // NOLINT(google-build-using-namespace)
  PhiloxBlock block = {{counter[0], counter[1], counter[2], counter[3]}};
  uint32_t key0 = key[0];
  uint32_t key1 = key[1];
  for (int round = 0; round < kRounds; ++round) {
    Round(block.w[0], block.w[1], block.w[2], block.w[3], key0, key1);
    key0 += kWeyl0;
    key1 += kWeyl1;
  }
  return block;
}

// Blocks whose counters differ in the last word only, word by word: so a CPU
// draws four in the time of one. Four lanes and not eight, because compilers
// spend more on sorting the halves of eight wide products than they win.
constexpr int kPhiloxLanes = 4;

struct PhiloxLanes {
  uint32_t w[4][kPhiloxLanes];
};

// Lane i is Philox({counter[0], counter[1], counter[2], counter[3] + i}, key).
inline void Philox(const uint32_t counter[4], const uint32_t key[2],
                   PhiloxLanes* lanes) {
  using namespace philox_internal;  // NOLINT(google-build-using-namespace)
  for (uint32_t i = 0; i < kPhiloxLanes; ++i) {
    uint32_t w0 = counter[0];
    uint32_t w1 = counter[1];
    uint32_t w2 = counter[2];
    uint32_t w3 = counter[3] + i;
    uint32_t key0 = key[0];
    uint32_t key1 = key[1];
    // Unrolled rounds would make the lanes the inner loop, which GCC then
    // unrolls too instead of vectorizing it: half the speed.
#if !defined(__CUDACC__)
#pragma GCC unroll 1
#endif
    for (int round = 0; round < kRounds; ++round) {
      Round(w0, w1, w2, w3, key0, key1);
      key0 += kWeyl0;
      key1 += kWeyl1;
    }
    lanes->w[0][i] = w0;
    lanes->w[1][i] = w1;
    lanes->w[2][i] = w2;
    lanes->w[3][i] = w3;
  }
}

}  // namespace oneemb
