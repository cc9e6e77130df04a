// Accuracy of the elementary functions against the C library's in double, and
// the conversions of 16-bit floats against the definition.
//
// The golden bits at the end may never change: rows drawn at different times,
// and steps taken on different machines, must agree.
#include "core/numeric.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "check.h"

namespace oneemb {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kMax = std::numeric_limits<float>::max();
constexpr float kMin = std::numeric_limits<float>::denorm_min();

// The error of `got` in units in the last place of a float like `want`.
double UlpError(float got, double want) {
  if (static_cast<double>(got) == want) return 0.0;
  if (static_cast<float>(want) == got && std::isinf(got)) return 0.0;
  const int exponent = std::max(std::ilogb(want), -126);
  return std::abs(got - want) / std::ldexp(1.0, exponent - 23);
}

double UlpError(double got, double want) {
  if (got == want) return 0.0;
  return std::abs(got - want) / std::ldexp(1.0, std::ilogb(want) - 52);
}

// The largest of error(x) over the floats with bits first, first + step, ...
template <class Error>
double Worst(float first, float last, uint32_t step, const Error& error) {
  double worst = 0.0;
  uint64_t bits = FloatBits(first);
  for (; bits <= FloatBits(last); bits += step) {
    worst = std::max(worst, error(FloatFromBits(static_cast<uint32_t>(bits))));
  }
  return worst;
}

TEST(LogWithinOneUlp) {
  const auto error = [](float x) {
    return UlpError(Log(x), std::log(static_cast<double>(x)));
  };
  // Measured over every float of the first range: 0.882.
  CHECK_NEAR(Worst(0.5F, 2.0F, 31, error), 0.0, 0.89);
  CHECK_NEAR(Worst(kMin, kMax, 2017, error), 0.0, 0.89);
}

TEST(LogAtTheEdges) {
  CHECK_EQ(Log(1.0F), 0.0F);
  CHECK_EQ(Log(0.0F), -kInf);
  CHECK_EQ(Log(-0.0F), -kInf);
  CHECK_EQ(Log(kInf), kInf);
  CHECK(std::isnan(Log(-1.0F)));
  CHECK(std::isnan(Log(-kInf)));
  CHECK(std::isnan(Log(kNaN)));
}

TEST(SinCosTwoPiWithinOneUlp) {
  const double two_pi = 8.0 * std::atan(1.0);
  double worst = 0.0;
  double worst_norm = 0.0;
  for (int32_t k = 0; k < 1 << 24; k += 7) {
    const double u = std::ldexp(k, -24);
    float sin = kNaN;
    float cos = kNaN;
    SinCosTwoPi(static_cast<float>(u), &sin, &cos);
    // Angles are exact in u, not after the multiplication by 2 pi.
    const double r = u - std::nearbyint(u * 2.0) / 2.0;
    const double sign = std::fmod(std::nearbyint(u * 2.0), 2.0) == 0.0 ? 1 : -1;
    worst = std::max(worst, UlpError(sin, sign * std::sin(two_pi * r)));
    const double q = 0.25 - std::abs(r);
    worst = std::max(worst, UlpError(cos, sign * std::sin(two_pi * q)));
    worst_norm = std::max(worst_norm,
                          std::abs(std::hypot(double{sin}, double{cos}) - 1.0));
  }
  // Measured over all 2^24 angles: 0.988 and 6.5e-8.
  CHECK_NEAR(worst, 0.0, 0.99);
  CHECK_NEAR(worst_norm, 0.0, 7e-8);
}

TEST(SinCosTwoPiAtTheQuarters) {
  const float sines[] = {0, 1, 0, -1};
  for (int k = 0; k < 4; ++k) {
    float sin = kNaN;
    float cos = kNaN;
    SinCosTwoPi(static_cast<float>(k) * 0.25F, &sin, &cos);
    CHECK_EQ(sin, sines[k]);
    CHECK_EQ(cos, sines[(k + 1) % 4]);
  }
}

TEST(LogOfDoubleWithinTwoUlp) {
  double worst = 0.0;
  for (int i = -1021; i <= 1023; ++i) {
    for (int k = 0; k < 256; ++k) {
      const double x = std::ldexp(0.5 + (k + 0.37) / 512.0, i);
      worst = std::max(worst, UlpError(Log(x), std::log(x)));
    }
  }
  CHECK_NEAR(worst, 0.0, 1.01);  // measured 1.0
  CHECK_EQ(Log(1.0), 0.0);
}

TEST(ExpWithinHalfUlp) {
  const auto error = [](float x) {
    return std::max(UlpError(Exp(x), std::exp(static_cast<double>(x))),
                    UlpError(Exp(-x), std::exp(-static_cast<double>(x))));
  };
  CHECK_NEAR(Worst(1e-8F, 110.0F, 499, error), 0.0, 0.501);
  CHECK_EQ(Exp(0.0F), 1.0F);
  CHECK_EQ(Exp(kInf), kInf);
  CHECK_EQ(Exp(-kInf), 0.0F);
  CHECK_EQ(Exp(1e30F), kInf);
  CHECK(std::isnan(Exp(kNaN)));
}

TEST(PowWithinHalfUlp) {
  for (const float y : {-1.0F, -0.5F, -0.3F, -0.01F, 0.01F, 0.25F, 0.5F, 0.9F,
                        1.0F, 3.0F, -7.5F}) {
    const auto error = [y](float x) {
      return UlpError(Pow(x, y), std::pow(static_cast<double>(x), y));
    };
    CHECK_NEAR(Worst(kMin, kMax, 15013, error), 0.0, 0.501);
  }
}

TEST(PowAtTheEdges) {
  for (const float x : {0.0F, 0.1F, 1.0F, kInf, kMax, kMin}) {
    for (const float y : {-1.0F, -0.5F, 0.0F, 0.5F, 1.0F}) {
      CHECK_EQ(Pow(x, y), std::pow(x, y));
    }
  }
  CHECK_EQ(Pow(kNaN, 0.0F), 1.0F);
  CHECK(std::isnan(Pow(kNaN, 0.5F)));
  CHECK(std::isnan(Pow(2.0F, kNaN)));
  CHECK(std::isnan(Pow(-1.0F, 0.5F)));
}

TEST(PowIntIsWithinItsBound) {
  CHECK_EQ(PowInt(0.9, 0), 1.0);
  CHECK_EQ(PowInt(0.9, 1), 0.9);
  CHECK_EQ(PowInt(0.0, 0), 1.0);
  CHECK_EQ(PowInt(0.0, 5), 0.0);
  CHECK_EQ(PowInt(1.0, uint64_t{1} << 32), 1.0);
  CHECK_EQ(PowInt(2.0, 100), std::ldexp(1.0, 100));
  CHECK_EQ(PowInt(0.5, ~uint64_t{0}), 0.0);
  for (const double base : {0.9, 0.999, 0.9999999, 1.0 - 1e-9}) {
    for (uint64_t n = 2; n < uint64_t{1} << 33; n = n * 3 + 1) {
      const long double want =
          std::pow(static_cast<long double>(base), static_cast<long double>(n));
      if (want < 1e-300L) break;
      CHECK_NEAR(PowInt(base, n) / static_cast<double>(want), 1.0,
                 std::ldexp(static_cast<double>(n), -52));
    }
  }
}

// P(X <= x) for a standard normal X, from the C library.
double NormalCdf(double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); }

TEST(NormalQuantileInvertsTheCdf) {
  CHECK_EQ(NormalQuantile(0.5), 0.0);
  // Wichura's own check values.
  CHECK_NEAR(NormalQuantile(0.25), -0.6744897501960817, 1e-15);
  CHECK_NEAR(NormalQuantile(0.001), -3.090232306167814, 4e-15);
  CHECK_NEAR(NormalQuantile(1e-20), -9.262340089798408, 1e-14);
  for (int i = -3700; i < 0; ++i) {
    const double x = i * 0.01;
    CHECK_NEAR(NormalQuantile(NormalCdf(x)), x, 2e-15 * std::max(1.0, -x));
  }
  for (int i = 0; i < 400; ++i) {
    const double x = i * 0.01;
    CHECK_NEAR(NormalQuantile(NormalCdf(x)), x, 1e-11);
  }
}

TEST(SqrtAndFmaRoundOnce) {
  CHECK_EQ(Sqrt(2.0F), 0x1.6A09E6p0F);
  CHECK_EQ(Sqrt(2.0), 0x1.6A09E667F3BCDp0);
  // 1 + 2^-23 squared, minus 1 + 2^-22: only a fused product keeps 2^-46.
  CHECK_EQ(Fma(0x1.000002p0F, 0x1.000002p0F, -0x1.000004p0F), 0x1p-46F);
  CHECK_EQ(Fma(0x1.0000000000001p0, 0x1.0000000000001p0, -0x1.0000000000002p0),
           0x1p-104);
}

// The value of a float with the given widths, by definition.
double Decode(uint32_t bits, int exponent_bits, int mantissa_bits) {
  const uint32_t mantissa = bits & ((1u << mantissa_bits) - 1);
  const int top = (1 << exponent_bits) - 1;
  const int exponent = static_cast<int>(bits >> mantissa_bits) & top;
  const int bias = top / 2;
  const double sign = bits >> (exponent_bits + mantissa_bits) != 0 ? -1 : 1;
  if (exponent == top) return mantissa == 0 ? sign * kInf : kNaN;
  const uint32_t one = exponent == 0 ? 0 : 1u << mantissa_bits;
  return sign * std::ldexp(mantissa + one,
                           std::max(exponent, 1) - bias - mantissa_bits);
}

template <class ToFloat, class FromFloat>
void CheckRoundTrip(int exponent_bits, int mantissa_bits, const ToFloat& widen,
                    const FromFloat& narrow) {
  for (uint32_t bits = 0; bits < 1u << 16; ++bits) {
    const uint16_t half = static_cast<uint16_t>(bits);
    const double want = Decode(bits, exponent_bits, mantissa_bits);
    const float got = widen(half);
    if (std::isnan(want)) {
      CHECK(std::isnan(got));
      CHECK(std::isnan(widen(narrow(got))));
    } else {
      CHECK_EQ(static_cast<double>(got), want);
      CHECK_EQ(narrow(got), half);
    }
  }
}

// Between two neighbours, floats round to the nearer, and ties to even.
template <class ToFloat, class FromFloat>
void CheckRounding(uint16_t largest, const ToFloat& widen,
                   const FromFloat& narrow) {
  for (uint32_t bits = 0; bits < largest; ++bits) {
    const uint16_t low = static_cast<uint16_t>(bits);
    const uint16_t high = static_cast<uint16_t>(bits + 1);
    const float middle = widen(low) + (widen(high) - widen(low)) / 2;
    const uint16_t even = (bits & 1) == 0 ? low : high;
    for (const uint32_t sign : {0u, 0x8000u}) {
      const float s = sign == 0 ? 1.0F : -1.0F;
      CHECK_EQ(narrow(s * middle), even | sign);
      CHECK_EQ(narrow(s * std::nextafter(middle, 0.0F)), low | sign);
      CHECK_EQ(narrow(s * std::nextafter(middle, kInf)), high | sign);
    }
  }
}

TEST(BFloat16) {
  CheckRoundTrip(8, 7, BFloat16ToFloat, FloatToBFloat16);
  CheckRounding(0x7F7F, BFloat16ToFloat, FloatToBFloat16);
  CHECK_EQ(FloatToBFloat16(kMax), 0x7F80);
  CHECK_EQ(FloatToBFloat16(FloatFromBits(0x7F7F7FFF)), 0x7F7F);
  CHECK(
      std::isnan(BFloat16ToFloat(FloatToBFloat16(FloatFromBits(0x7F800001)))));
}

TEST(Float16) {
  CheckRoundTrip(5, 10, Float16ToFloat, FloatToFloat16);
  CheckRounding(0x7BFF, Float16ToFloat, FloatToFloat16);
  CHECK_EQ(FloatToFloat16(65519.996F), 0x7BFF);
  CHECK_EQ(FloatToFloat16(65520.0F), 0x7C00);
  CHECK_EQ(FloatToFloat16(70000.0F), 0x7C00);
  CHECK_EQ(FloatToFloat16(-kMax), 0xFC00);
  CHECK_EQ(FloatToFloat16(kMin), 0);
  CHECK(std::isnan(Float16ToFloat(FloatToFloat16(FloatFromBits(0x7F800001)))));
}

// Both sides of each branch, to the bit.
TEST(GoldenBits) {
  CHECK_EQ(Log(3.0F), 0x1.193EA8p+0F);
  CHECK_EQ(Log(0.1F), -0x1.26BB1Cp+1F);
  CHECK_EQ(Log(0.99F), -0x1.49544p-7F);
  CHECK_EQ(Log(1e-40F), -0x1.7069E4p+6F);
  CHECK_EQ(Log(0x1p-32F), -0x1.62E43p+4F);
  CHECK_EQ(Pow(0.3F, -0.5F), 0x1.D363DP+0F);
  CHECK_EQ(Pow(1e-40F, 0.9F), 0x1.54480Ep-120F);
  CHECK_EQ(Exp(-1.7F), 0x1.7622C6p-3F);
  CHECK_EQ(PowInt(0.999, 123457), 0x1.BDBF68D13F35Bp-179);
  CHECK_EQ(NormalQuantile(0.3), -0x1.0C7E39582C5FBp-1);
  CHECK_EQ(NormalQuantile(0.01), -0x1.29C5C4630FF0Ep+1);
  CHECK_EQ(NormalQuantile(1e-15), -0x1.FC3F007789667p+2);
  CHECK_EQ(NormalQuantile(0.9), 0x1.4813C36E26D34p+0);
}

TEST(GoldenBitsOfSinCosTwoPi) {
  const float golden[][3] = {
      {0.03F, 0x1.7FC1C6p-3F, 0x1.F6EE5Ap-1F},
      {0.21F, 0x1.EFEA22p-1F, 0x1.FD5124p-3F},
      {0.4F, 0x1.2CF23p-1F, -0x1.9E377Ap-1F},
      {0.6F, -0x1.2CF234p-1F, -0x1.9E3778p-1F},
      {0.7F, -0x1.E6F0Ep-1F, -0x1.3C6EF8p-2F},
      {0.95F, -0x1.3C6EF8p-2F, 0x1.E6F0Ep-1F},
  };
  for (const auto& row : golden) {
    float sin = 0.0F;
    float cos = 0.0F;
    SinCosTwoPi(row[0], &sin, &cos);
    CHECK_EQ(sin, row[1]);
    CHECK_EQ(cos, row[2]);
  }
}

}  // namespace
}  // namespace oneemb
