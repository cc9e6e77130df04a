// Philox4x32-10 against its known answers, which never change.
#include "core/philox.h"

#include <cstdint>

#include "check.h"

namespace oneemb {
namespace {

void CheckBlock(const uint32_t (&counter)[4], const uint32_t (&key)[2],
                const uint32_t (&want)[4]) {
  const PhiloxBlock block = Philox(counter, key);
  for (int i = 0; i < 4; ++i) CHECK_EQ(block.w[i], want[i]);
}

// The known-answer vectors that the authors publish with Random123.
TEST(KnownAnswers) {
  CheckBlock({0, 0, 0, 0}, {0, 0},
             {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  CheckBlock({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
             {0xffffffff, 0xffffffff},
             {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CheckBlock({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
             {0xa4093822, 0x299f31d0},
             {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST(LanesEqualBlocks) {
  const uint32_t key[2] = {0xa4093822, 0x299f31d0};
  // The last counter wraps within the lanes.
  for (const uint32_t first : {0u, 5u, 0xfffffffeu}) {
    const uint32_t counter[4] = {1, 0x80000000, 3, first};
    PhiloxLanes lanes;
    Philox(counter, key, &lanes);
    for (uint32_t i = 0; i < kPhiloxLanes; ++i) {
      CheckBlock({counter[0], counter[1], counter[2], first + i},
                 {key[0], key[1]},
                 {lanes.w[0][i], lanes.w[1][i], lanes.w[2][i], lanes.w[3][i]});
    }
  }
}

}  // namespace
}  // namespace oneemb
