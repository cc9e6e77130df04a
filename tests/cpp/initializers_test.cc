// Initial rows: every path against InitialValue, the distributions' edges, and
// golden bits.
//
// The golden rows may never change, whatever the reason: a table keeps no row
// that was not trained, so rows drawn today must equal those of last year.
#include "core/initializers.h"

#include <cmath>
#include <cstdint>
#include <numeric>
#include <vector>

#include "check.h"

namespace oneemb {
namespace {

constexpr InitializerConfig kConstant = {
    InitializerKind::kConstant, 0.25F, 0, 0, 0, 0, 0};
constexpr InitializerConfig kUniform = {
    InitializerKind::kUniform, -0.5F, 1.5F, 0, 0x1.FFFFFEp-1F, 0, 0};
constexpr InitializerConfig kNormal = {
    InitializerKind::kNormal, 1.0F, 0.5F, 0, 0, 0, 0};
// Between -2 and 2 standard deviations.
constexpr InitializerConfig kTruncNormal = {InitializerKind::kTruncNormal,
                                            1.0F,
                                            0.5F,
                                            0.0F,
                                            2.0F,
                                            0.022750131948179195,
                                            0.9544997361036417};
constexpr InitializerConfig kAll[] = {kConstant, kUniform, kNormal,
                                      kTruncNormal};

// A plain generator for test cases (splitmix64).
class Cases {
 public:
  uint64_t Next() {
    state_ += 0x9E3779B97F4A7C15;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return z ^ (z >> 31);
  }

 private:
  uint64_t state_ = 0;
};

void CheckRow(const std::vector<int32_t>& widths,
              const std::vector<InitializerConfig>& configs, uint64_t seed,
              uint16_t table, uint64_t id) {
  const int32_t num_columns = static_cast<int32_t>(widths.size());
  std::vector<int32_t> ends(widths.size());
  std::partial_sum(widths.begin(), widths.end(), ends.begin());
  constexpr float kGuard = -77.0F;
  std::vector<float> row(static_cast<size_t>(ends.back()) + 1, kGuard);
  FillInitialRow({seed, num_columns, ends.data(), configs.data()}, table, id,
                 row.data());
  size_t k = 0;
  for (int32_t c = 0; c < ends.back(); ++c) {
    while (c == ends[k]) ++k;
    const InitializerConfig& config =
        configs[table * static_cast<size_t>(num_columns) + k];
    CHECK_EQ(FloatBits(row[static_cast<size_t>(c)]),
             FloatBits(InitialValue(config, seed, table, id, c)));
  }
  CHECK_EQ(row.back(), kGuard);
}

TEST(RowsEqualValues) {
  Cases cases;
  const std::vector<std::vector<int32_t>> shapes = {
      {1},     {2},       {3},          {4},      {15},        {16},
      {17},    {63},      {64},         {65},     {128},       {200},
      {16, 1}, {3, 5, 9}, {1, 1, 1, 1}, {64, 64}, {61, 3, 70}, {5, 128}};
  for (const auto& widths : shapes) {
    for (int repeat = 0; repeat < 8; ++repeat) {
      std::vector<InitializerConfig> configs(3 * widths.size());
      for (InitializerConfig& config : configs) config = kAll[cases.Next() % 4];
      const uint16_t table = static_cast<uint16_t>(cases.Next() % 3);
      CheckRow(widths, configs, cases.Next(), table, cases.Next());
    }
  }
}

TEST(EveryArgumentMatters) {
  const float x = InitialValue(kUniform, 1, 2, 3, 4);
  CHECK_EQ(x, InitialValue(kUniform, 1, 2, 3, 4));
  CHECK(x != InitialValue(kUniform, 2, 2, 3, 4));
  CHECK(x != InitialValue(kUniform, 1 + (uint64_t{1} << 32), 2, 3, 4));
  CHECK(x != InitialValue(kUniform, 1, 3, 3, 4));
  CHECK(x != InitialValue(kUniform, 1, 2 + 256, 3, 4));
  CHECK(x != InitialValue(kUniform, 1, 2, 4, 4));
  CHECK(x != InitialValue(kUniform, 1, 2, 3 + (uint64_t{1} << 32), 4));
  CHECK(x != InitialValue(kUniform, 1, 2, 3, 5));
  CHECK(x != InitialValue(kUniform, 1, 2, 3, 8));
}

TEST(SharedKeysLeaveTheTableOut) {
  const int32_t ends[] = {6};
  const InitializerConfig configs[] = {kUniform, kUniform, kNormal};
  float separate[6];
  float shared[3][6];
  for (uint16_t table = 0; table < 3; ++table) {
    FillInitialRow({9, 1, ends, configs, true}, table, 5, shared[table]);
  }
  FillInitialRow({9, 1, ends, configs, false}, 1, 5, separate);
  for (int c = 0; c < 6; ++c) {
    CHECK_EQ(shared[0][c], shared[1][c]);
    CHECK_EQ(shared[0][c], InitialValue(kUniform, 9, 0, 5, c));
    CHECK_EQ(shared[2][c], InitialValue(kNormal, 9, 0, 5, c));
    CHECK(separate[c] != shared[1][c]);
  }
}

using initializers_internal::NormalPair;
using initializers_internal::TruncNormalValue;
using initializers_internal::UniformValue;

TEST(UniformNeverReachesHigh) {
  CHECK_EQ(UniformValue(kUniform, 0), -0.5F);
  CHECK_EQ(UniformValue(kUniform, 0xFF), -0.5F);
  CHECK_EQ(UniformValue(kUniform, 0x80000000), 0.25F);
  // The largest word rounds to high.
  const InitializerConfig half = {
      InitializerKind::kUniform, 0.5F, 0.5F, 0, 0x1.FFFFFEp-1F, 0, 0};
  CHECK_EQ(UniformValue(half, 0xFFFFFFFF), 0x1.FFFFFEp-1F);
  const InitializerConfig far = {
      InitializerKind::kUniform, 1e6F, 1.0F, 0, 1000000.9375F, 0, 0};
  CHECK_EQ(UniformValue(far, 0xFFFFFFFF), 1000000.9375F);
}

TEST(NormalPairAtItsExtremes) {
  constexpr InitializerConfig kStandard = {
      InitializerKind::kNormal, 0.0F, 1.0F, 0, 0, 0, 0};
  for (const uint32_t word0 : {0u, 1u, 0x7FFFFFFFu, 0xFFFFFFFFu}) {
    for (const uint32_t word1 : {0u, 0x40000000u, 0xFFFFFFFFu}) {
      float x0 = 0.0F;
      float x1 = 0.0F;
      NormalPair(kStandard, word0, word1, &x0, &x1);
      const double u = ((word0 >> 1) + 0.5) * 0x1p-31;
      const double angle = 8.0 * std::atan(1.0) * (word1 >> 8) * 0x1p-24;
      const double radius = std::sqrt(-2.0 * std::log(u));
      // At the smallest radius u rounds to 1.
      CHECK_NEAR(x0, radius * std::cos(angle), 1e-4);
      CHECK_NEAR(x1, radius * std::sin(angle), 1e-4);
    }
  }
}

TEST(TruncNormalStaysBetweenTheCuts) {
  CHECK_NEAR(TruncNormalValue(kTruncNormal, 0x7FFFFFFF), 1.0, 1e-6);
  CHECK_NEAR(TruncNormalValue(kTruncNormal, 0), 0.0, 1e-6);
  CHECK_NEAR(TruncNormalValue(kTruncNormal, 0xFFFFFFFF), 2.0, 1e-6);
  // They hold even where the probabilities say otherwise.
  InitializerConfig wide = kTruncNormal;
  wide.cdf_low = 0.0;
  wide.cdf_span = 1.0;
  CHECK_EQ(TruncNormalValue(wide, 0), 0.0F);
  CHECK_EQ(TruncNormalValue(wide, 0xFFFFFFFF), 2.0F);
}

TEST(TruncNormalIsMirroredExactly) {
  const double p = 0.5 * std::erfc(10.0 / std::sqrt(2.0));
  const double span = 0.5 * std::erfc(9.5 / std::sqrt(2.0)) - p;
  const InitializerConfig low = {
      InitializerKind::kTruncNormal, 0.0F, 1.0F, -10.0F, -9.5F, p, span};
  const InitializerConfig high = {
      InitializerKind::kTruncNormal, 0.0F, -1.0F, 9.5F, 10.0F, p, span};
  CHECK_NEAR(TruncNormalValue(low, 0), -10.0, 2e-6);
  CHECK_NEAR(TruncNormalValue(low, 0xFFFFFFFF), -9.5, 2e-6);
  for (uint32_t i = 0; i < 1000; ++i) {
    CHECK_EQ(TruncNormalValue(low, i * 4294967u),
             -TruncNormalValue(high, i * 4294967u));
  }
  // Words w and ~w are the same distance from the two ends.
  const InitializerConfig all = {
      InitializerKind::kTruncNormal, 0.0F, 1.0F, -9.0F, 9.0F, 0.0, 1.0};
  for (const uint32_t word : {0u, 1u, 0x1234567u, 0x70000000u}) {
    CHECK_NEAR(TruncNormalValue(all, word), -TruncNormalValue(all, ~word),
               1e-6);
  }
}

TEST(DecodeReadsEveryField) {
  const double encoded[kInitializerDoubles] = {3, 1, -2, -0.1, 4, 0.25, 0.5};
  const InitializerConfig config = DecodeInitializer(encoded);
  CHECK_EQ(config.kind, InitializerKind::kTruncNormal);
  CHECK_EQ(config.base, 1.0F);
  CHECK_EQ(config.scale, -2.0F);
  CHECK_EQ(config.min, -0.1F);
  CHECK_EQ(config.max, 4.0F);
  CHECK_EQ(config.cdf_low, 0.25);
  CHECK_EQ(config.cdf_span, 0.5);
}

TEST(GoldenRows) {
  const float golden[][6] = {
      {0x1p-2F, 0x1p-2F, 0x1p-2F, 0x1p-2F, 0x1p-2F, 0x1p-2F},
      {0x1.FD1D58p-1F, 0x1.C42C64p-1F, 0x1.AA6A9p-2F, -0x1.371176p-2F,
       -0x1.903688p-2F, 0x1.2A459p-1F},
      {0x1.09CD4Cp+0F, 0x1.F58EA6p-1F, 0x1.568228p+0F, 0x1.5D1296p+0F,
       0x1.985E96p-1F, -0x1.03414p-3F},
      {0x1.F80332p+0F, 0x1.A62C42p+0F, 0x1.226314p+0F, 0x1.E81388p-2F,
       0x1.5875A4p-2F, 0x1.47709Ep+0F},
  };
  for (int kind = 0; kind < 4; ++kind) {
    for (int c = 0; c < 6; ++c) {
      CHECK_EQ(InitialValue(kAll[kind], 0x0123456789ABCDEF, 7,
                            0xFEDCBA9876543210, c),
               golden[kind][c]);
    }
  }
}

}  // namespace
}  // namespace oneemb
