// The two summation orders against their definition.
#include "core/summation.h"

#include <random>
#include <vector>

#include "check.h"
#include "cpu/gradient_sum.h"

namespace oneemb {
namespace {

// The definition: cut into blocks of 32, sum each, then the sums likewise.
float SumByDefinition(std::vector<float> terms) {
  if (terms.empty()) return 0.0F;
  while (terms.size() > 1) {
    std::vector<float> sums;
    for (size_t i = 0; i < terms.size(); i += kSumBlock) {
      float sum = terms[i];
      for (size_t k = i + 1; k < std::min(i + kSumBlock, terms.size()); ++k) {
        sum += terms[k];
      }
      sums.push_back(sum);
    }
    terms = sums;
  }
  return terms[0];
}

std::vector<float> RandomTerms(size_t n, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> terms(n);
  for (float& term : terms) term = normal(random);
  return terms;
}

const size_t kSizes[] = {1,    2,    31,   32,   33,   64,    65,    1023,
                         1024, 1025, 1056, 1057, 2048, 32768, 32769, 40000};

TEST(BlockSumFollowsTheDefinition) {
  for (const size_t n : kSizes) {
    const std::vector<float> terms = RandomTerms(n, static_cast<uint32_t>(n));
    BlockSum sum;
    for (const float term : terms) sum.Add(term);
    CHECK_EQ(FloatBits(sum.Total()), FloatBits(SumByDefinition(terms)));
  }
  CHECK_EQ(BlockSum().Total(), 0.0F);
}

TEST(BlockSumKeepsNegativeZero) {
  BlockSum sum;
  sum.Add(-0.0F);
  CHECK_EQ(FloatBits(sum.Total()), FloatBits(-0.0F));
}

TEST(GradientSumFollowsTheDefinition) {
  constexpr int64_t kDim = 19;
  for (const size_t n : kSizes) {
    const std::vector<float> values =
        RandomTerms(n * kDim, static_cast<uint32_t>(n));
    const GradientBatch batch{0, values.data()};
    const GradientsView gradients{&batch, 1, kDim, FloatType::kFloat32};
    std::vector<SlotPosition> entries(n);
    for (size_t i = 0; i < n; ++i) entries[i] = i;
    std::vector<float> space(static_cast<size_t>(GradientSumSpace(kDim)));
    GradientSum<Float32Access> sum(gradients, space.data());
    const float* const total = sum.Sum(entries.data(), static_cast<int64_t>(n));
    for (size_t c = 0; c < kDim; ++c) {
      std::vector<float> terms;
      for (size_t i = 0; i < n; ++i) terms.push_back(values[i * kDim + c]);
      CHECK_EQ(FloatBits(total[c]), FloatBits(SumByDefinition(terms)));
    }
  }
}

TEST(ColumnsUseEightLanes) {
  for (const int64_t n : {1, 7, 8, 9, 16, 17, 128}) {
    const std::vector<float> terms = RandomTerms(static_cast<size_t>(n), 5);
    float lanes[8] = {};
    for (size_t c = 0; c < terms.size(); ++c) lanes[c % 8] += terms[c];
    const float wanted = ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) +
                         ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
    const float* const t = terms.data();
    CHECK_EQ(FloatBits(SumColumns(n, [t](int64_t c) { return t[c]; })),
             FloatBits(wanted));
  }
}

}  // namespace
}  // namespace oneemb
