// Elementary functions that give the same bits on every CPU and GPU.
//
// They use + - * / and sqrt, which IEEE 754 rounds correctly everywhere, a
// fused multiply-add only where Fma is written, and integer arithmetic.
// Libraries differ in log, sin, cos and pow, so those are ours. Whoever
// includes this compiles with floating-point contraction off.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/macros.h"

namespace oneemb {

ONEEMB_HD uint32_t FloatBits(float x) {
  uint32_t bits = 0;
  memcpy(&bits, &x, sizeof(bits));
  return bits;
}

ONEEMB_HD float FloatFromBits(uint32_t bits) {
  float x = 0.0F;
  memcpy(&x, &bits, sizeof(x));
  return x;
}

ONEEMB_HD uint64_t DoubleBits(double x) {
  uint64_t bits = 0;
  memcpy(&bits, &x, sizeof(bits));
  return bits;
}

ONEEMB_HD double DoubleFromBits(uint64_t bits) {
  double x = 0.0;
  memcpy(&x, &bits, sizeof(x));
  return x;
}

constexpr uint32_t kFloatSign = 0x80000000;
constexpr uint32_t kFloatInfinity = 0x7F800000;
constexpr uint32_t kFloatNaN = 0x7FC00000;

#if defined(__CUDA_ARCH__)
ONEEMB_HD float Sqrt(float x) { return __fsqrt_rn(x); }
ONEEMB_HD double Sqrt(double x) { return __dsqrt_rn(x); }
ONEEMB_HD float Fma(float a, float b, float c) { return __fmaf_rn(a, b, c); }
ONEEMB_HD double Fma(double a, double b, double c) { return __fma_rn(a, b, c); }
#else
ONEEMB_HD float Sqrt(float x) { return __builtin_sqrtf(x); }
ONEEMB_HD double Sqrt(double x) { return __builtin_sqrt(x); }
ONEEMB_HD float Fma(float a, float b, float c) {
  return __builtin_fmaf(a, b, c);
}
ONEEMB_HD double Fma(double a, double b, double c) {
  return __builtin_fma(a, b, c);
}
#endif

// Polynomial(x, c0, c1, c2, ...) = c0 + c1 x + c2 x^2 + ..., by Horner's rule.
template <class T>
ONEEMB_HD T Polynomial(T /*x*/, T c) {
  return c;
}
template <class T, class... Higher>
ONEEMB_HD T Polynomial(T x, T c, Higher... higher) {
  return Fma(Polynomial(x, higher...), x, c);
}

// The natural logarithm, within 1 unit in the last place.
ONEEMB_HD float Log(float x) {
  constexpr uint32_t kTwoThirds = 0x3F2AAAAB;
  constexpr float kLn2High = 0x1.62ep-1F;  // 12 bits: a product with e is exact
  constexpr float kLn2Low = 0x1.0BFBE8p-15F;
  const bool subnormal = x < 0x1p-126F;
  const uint32_t bits = FloatBits(subnormal ? x * 0x1p23F : x);
  // x = 2^e m with m in [2/3, 4/3), and f = m - 1 exactly.
  const int32_t e = static_cast<int32_t>(bits - kTwoThirds) >> 23;
  const float f = FloatFromBits(bits - (static_cast<uint32_t>(e) << 23)) - 1.0F;
  const float exponent = static_cast<float>(e - (subnormal ? 23 : 0));
  // log(1 + f) = f - f^2 / 2 + f^3 P(f), P minimax to 2^-30 of the result.
  const float p = Polynomial(f, 0.333333387F, -0.249998194F, 0.199993061F,
                             -0.166796157F, 0.143128361F, -0.121952855F,
                             0.106613869F, -0.128471139F, 0.123579300F);
  const float f2 = f * f;
  const float tail = Fma(exponent, kLn2Low, f2 * Fma(f, p, -0.5F));
  float y = Fma(exponent, kLn2High, f + tail);
  y = x == FloatFromBits(kFloatInfinity) ? x : y;
  y = x == 0.0F ? FloatFromBits(kFloatSign | kFloatInfinity) : y;
  return x >= 0.0F ? y : FloatFromBits(kFloatNaN);
}

// sin(2 pi u) and cos(2 pi u) for u in [0, 1), within 1 unit in the last place.
ONEEMB_HD void SinCosTwoPi(float u, float* sin, float* cos) {
  // u = quarter / 4 + r with r in [-1/8, 1/8], exactly.
  const int32_t quarter = static_cast<int32_t>(Fma(u, 4.0F, 0.5F));
  const float r = Fma(static_cast<float>(quarter), -0.25F, u);
  const float z = r * r;
  // sin(2 pi r) = 2 pi r + r z P(z), cos(2 pi r) = 1 + z Q(z), minimax; 2 pi is
  // split in two, since its rounding alone is half a unit.
  constexpr float kTwoPiHigh = 0x1.921FB6p2F;
  constexpr float kTwoPiLow = -0x1.777A5Cp-23F;
  const float p = Polynomial(z, kTwoPiLow, -41.3417022F, 81.6052038F,
                             -76.6977741F, 41.4698896F);
  const float s = Fma(r, kTwoPiHigh, r * p);
  const float c = Fma(
      z, Polynomial(z, -19.7392087F, 64.9393265F, -85.4437417F, 59.2459643F),
      1.0F);
  const bool odd = (quarter & 1) != 0;
  const float sin_size = odd ? c : s;
  const float cos_size = odd ? s : c;
  *sin = (quarter & 2) != 0 ? -sin_size : sin_size;
  *cos = ((quarter + 1) & 2) != 0 ? -cos_size : cos_size;
}

// The natural logarithm of a positive normal number, within 2 units.
ONEEMB_HD double Log(double x) {
  constexpr uint32_t kTwoThirds = 0x3FE55555;    // its high word
  constexpr double kLn2High = 0x1.62E42FEFAp-1;  // a product with e is exact
  constexpr double kLn2Low = 0x1.CF79ABC9E3B3Ap-40;
  const uint64_t bits = DoubleBits(x);
  const int32_t e =
      static_cast<int32_t>(static_cast<uint32_t>(bits >> 32) - kTwoThirds) >>
      20;
  const double m = DoubleFromBits(bits - (static_cast<uint64_t>(e) << 52));
  const double exponent = static_cast<double>(e);
  // log(m) = 2 artanh(s), s = (m - 1) / (m + 1), |s| <= 1/5: the series.
  const double f = m - 1.0;
  const double s = f / (m + 1.0);
  const double z = s * s;
  const double p =
      Polynomial(z, 2.0 / 3, 2.0 / 5, 2.0 / 7, 2.0 / 9, 2.0 / 11, 2.0 / 13,
                 2.0 / 15, 2.0 / 17, 2.0 / 19, 2.0 / 21, 2.0 / 23);
  // 2 s = f - s f, and f is exact.
  const double tail = Fma(exponent, kLn2Low, s * Fma(z, p, -f));
  return Fma(exponent, kLn2High, f + tail);
}

// 2^t for |t| <= 1000, to a relative error of 2^-36.
ONEEMB_HD double Exp2(double t) {
  // Adding 1.5 * 2^52 leaves the nearest integer in the low bits.
  constexpr double kRound = 0x1.8p52;
  const double shifted = t + kRound;
  const double x = (t - (shifted - kRound)) * 0x1.62E42FEFA39EFp-1;
  const double p =
      Polynomial(x, 1.0, 1.0, 1.0 / 2, 1.0 / 6, 1.0 / 24, 1.0 / 120, 1.0 / 720,
                 1.0 / 5040, 1.0 / 40320, 1.0 / 362880);
  return DoubleFromBits(DoubleBits(p) + (DoubleBits(shifted) << 52));
}

// 2^t rounded to float, overflow and underflow included.
ONEEMB_HD float Exp2ToFloat(double t) {
  t = t > 1000.0 ? 1000.0 : t;
  t = t < -1000.0 ? -1000.0 : t;
  return static_cast<float>(Exp2(t));
}

// e^x, within 0.51 units in the last place.
ONEEMB_HD float Exp(float x) {
  const float y = Exp2ToFloat(static_cast<double>(x) * 0x1.71547652B82FEp0);
  return x == x ? y : x;
}

// x^y, within 0.51 units in the last place. NaN for a negative x.
ONEEMB_HD float Pow(float x, float y) {
  const float infinity = FloatFromBits(kFloatInfinity);
  const bool finite = x > 0.0F && x < infinity;
  const double log2_x =
      Log(finite ? static_cast<double>(x) : 1.0) * 0x1.71547652B82FEp0;
  const float power = Exp2ToFloat(static_cast<double>(y) * log2_x);
  const float at_zero = y > 0.0F ? 0.0F : infinity;
  const float at_infinity = y > 0.0F ? infinity : 0.0F;
  float z = x == 0.0F ? at_zero : at_infinity;
  z = finite ? power : z;
  z = x >= 0.0F && y == y ? z : FloatFromBits(kFloatNaN);
  return y == 0.0F ? 1.0F : z;
}

// base^n by squaring. The relative error is below n * 2^-52.
ONEEMB_HD double PowInt(double base, uint64_t n) {
  double power = 1.0;
  for (; n != 0; n >>= 1) {
    if ((n & 1) != 0) power *= base;
    base *= base;
  }
  return power;
}

// The x with P(X <= x) = p for a standard normal X; 2^-1022 <= p < 1.
//
// M. J. Wichura, "Algorithm AS 241: The percentage points of the normal
// distribution", Applied Statistics 37 (1988), function PPND16: a relative
// error of about 1e-16.
ONEEMB_HD double NormalQuantile(double p) {
  const double q = p - 0.5;
  if (q <= 0.425 && q >= -0.425) {
    const double r = 0.180625 - q * q;
    return q *
           Polynomial(r, 3.3871328727963666080, 133.14166789178437745,
                      1971.5909503065514427, 13731.693765509461125,
                      45921.953931549871457, 67265.770927008700853,
                      33430.575583588128105, 2509.0809287301226727) /
           Polynomial(r, 1.0, 42.313330701600911252, 687.18700749205790830,
                      5394.1960214247511077, 21213.794301586595867,
                      39307.895800092710610, 28729.085735721942674,
                      5226.4952788528545610);
  }
  double r = Sqrt(-Log(q < 0.0 ? p : 1.0 - p));
  double x = 0.0;
  if (r <= 5.0) {
    r -= 1.6;
    x = Polynomial(r, 1.42343711074968357734, 4.63033784615654529590,
                   5.76949722146069140550, 3.64784832476320460504,
                   1.27045825245236838258, 0.241780725177450611770,
                   0.0227238449892691845833, 7.74545014278341407640e-4) /
        Polynomial(r, 1.0, 2.05319162663775882187, 1.67638483018380384940,
                   0.689767334985100004550, 0.148103976427480074590,
                   0.0151986665636164571966, 5.47593808499534494600e-4,
                   1.05075007164441684324e-9);
  } else {
    r -= 5.0;
    x = Polynomial(r, 6.65790464350110377720, 5.46378491116411436990,
                   1.78482653991729133580, 0.296560571828504891230,
                   0.0265321895265761230930, 1.24266094738807843860e-3,
                   2.71155556874348757815e-5, 2.01033439929228813265e-7) /
        Polynomial(r, 1.0, 0.599832206555887937690, 0.136929880922735805310,
                   0.0148753612908506148525, 7.86869131145613259100e-4,
                   1.84631831751005468180e-5, 1.42151175831644588870e-7,
                   2.04426310338993978564e-15);
  }
  return q < 0.0 ? -x : x;
}

// bfloat16 and float16 travel as their bits. To them: nearest, ties to even; a
// NaN stays a NaN. From them: exact.

ONEEMB_HD float BFloat16ToFloat(uint16_t half) {
  return FloatFromBits(static_cast<uint32_t>(half) << 16);
}

ONEEMB_HD uint16_t FloatToBFloat16(float x) {
  const uint32_t bits = FloatBits(x);
  const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  const bool is_nan = (bits & ~kFloatSign) > kFloatInfinity;
  return static_cast<uint16_t>(is_nan ? (bits >> 16) | 0x40 : rounded);
}

ONEEMB_HD float Float16ToFloat(uint16_t half) {
  constexpr uint32_t kRebias = (127 - 15) << 23;
  const uint32_t magnitude = static_cast<uint32_t>(half & 0x7FFF) << 13;
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const bool special = magnitude >= 0x1Fu << 23;  // infinity or NaN
  const bool subnormal = magnitude < 1u << 23;
  const uint32_t normal = magnitude + kRebias + (special ? kRebias : 0);
  const float small =
      static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-37F;
  return FloatFromBits(sign | (subnormal ? FloatBits(small) : normal));
}

ONEEMB_HD uint16_t FloatToFloat16(float x) {
  constexpr uint32_t kRebias = (127 - 15) << 23;
  const uint32_t bits = FloatBits(x);
  const uint32_t sign = (bits & kFloatSign) >> 16;
  const uint32_t magnitude = bits & ~kFloatSign;
  const uint32_t normal =
      (magnitude - kRebias + 0xFFF + ((magnitude >> 13) & 1)) >> 13;
  // One unit of 0.5F is the smallest float16: the sum rounds as we want.
  const uint32_t subnormal =
      FloatBits(FloatFromBits(magnitude) + 0.5F) - FloatBits(0.5F);
  uint32_t half = magnitude < (113u << 23) ? subnormal : normal;
  half = magnitude >= (143u << 23) ? 0x7C00 : half;
  half = magnitude > kFloatInfinity ? 0x7E00 : half;
  return static_cast<uint16_t>(sign | half);
}

}  // namespace oneemb
