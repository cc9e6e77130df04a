// The checks themselves: each must fail when it should.
#include "check.h"

#include <cstdint>
#include <limits>

namespace {

// Whether `body` fails a check. Its message goes to standard error as usual.
template <class Body>
bool Fails(const Body& body) {
  try {
    body();
  } catch (const oneemb::check::Failure&) {
    return true;
  }
  return false;
}

TEST(CheckFailsOnFalse) {
  CHECK(true);
  CHECK(Fails([] { CHECK(1 == 2); }));
}

TEST(CheckEqComparesAcrossSignedness) {
  CHECK_EQ(3u, 3);
  CHECK_EQ(uint8_t{7}, int64_t{7});
  CHECK(Fails([] { CHECK_EQ(-1, 0xffffffffu); }));
  CHECK(Fails([] { CHECK_EQ(std::string("a"), "b"); }));
}

TEST(CheckNearRefusesNan) {
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  constexpr double kInf = std::numeric_limits<double>::infinity();
  CHECK_NEAR(1.0, 1.25, 0.25);
  CHECK_NEAR(kInf, kInf, 0);
  CHECK(Fails([] { CHECK_NEAR(1.0, 1.5, 0.25); }));
  CHECK(Fails([] { CHECK_NEAR(kNan, kNan, kInf); }));
  CHECK(Fails([] { CHECK_NEAR(kInf, 0.0, 1e300); }));
}

}  // namespace
