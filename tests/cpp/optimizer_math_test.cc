// The row updates against the formulas in double precision, and the promises
// that a tolerance would hide: order of operations, untouched memory, and what
// happens at zero norms, zero rates and unknown codes.
#include "core/optimizer_math.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "cpu/row_update.h"

namespace oneemb {
namespace {

constexpr int64_t kDims[] = {1, 3, 8, 17, 64};
constexpr double kRate = 0.05;
// The updates in which the row takes part; smart decay sees the gaps.
constexpr uint32_t kSteps[] = {0, 1, 2, 5, 6, 40};

OptimizerConfig Config(OptimizerKind kind) {
  OptimizerConfig config;
  config.kind = kind;
  config.momentum = 0.9;
  config.beta1 = 0.9;
  config.beta2 = 0.999;
  config.eps = 1e-6;
  config.bias_correction = true;
  config.lr_decay = 0.1;
  config.initial_accumulator_value = 0.1;
  config.lr_power = -0.5;
  config.lambda1 = 0.05;
  config.lambda2 = 0.01;
  config.beta = 1.0;
  return config;
}

// A row, and the same row in double precision.
template <class Optimizer>
struct Rows {
  static constexpr uint32_t kGuard = 0xdeadbeef;

  Rows(const OptimizerConfig& config, int64_t width)
      : dim(width),
        words(RowWords(dim, Optimizer::kStateFields, Optimizer::kRowWords)),
        row(static_cast<size_t>(words) + 1, kGuard) {
    std::uniform_real_distribution<float> uniform(-0.5F, 0.5F);
    for (int64_t c = 0; c < dim; ++c) Set(c, uniform(random));
    InitState<Optimizer>(config, dim, row.data());
    exact.resize(static_cast<size_t>(4 * dim));
    travel.resize(exact.size());
    for (int64_t c = 0; c < NumFloats(); ++c) Field(0)[c] = Get(c);
  }

  int64_t NumFloats() const { return dim * (1 + Optimizer::kStateFields); }
  float Get(int64_t word) const {
    return FloatFromBits(row[static_cast<size_t>(word)]);
  }
  void Set(int64_t word, float value) {
    row[static_cast<size_t>(word)] = FloatBits(value);
  }
  double* Field(int field) { return exact.data() + field * dim; }

  const std::vector<float>& NewGradient() {
    std::normal_distribution<float> normal;
    gradient.resize(static_cast<size_t>(dim));
    for (float& g : gradient) g = normal(random);
    return gradient;
  }

  void AddTravel(const std::vector<double>& before) {
    for (size_t i = 0; i < exact.size(); ++i) {
      travel[i] += std::fabs(exact[i] - before[i]);
    }
  }

  // Within 1e-6 of the largest number of a field and the way it has moved.
  void CheckClose() const {
    for (int64_t begin = 0; begin < NumFloats(); begin += dim) {
      double size = 0;
      double moved = 0;
      for (int64_t c = begin; c < begin + dim; ++c) {
        size = std::fmax(size, std::fabs(exact[static_cast<size_t>(c)]));
        moved = std::fmax(moved, travel[static_cast<size_t>(c)]);
      }
      for (int64_t c = begin; c < begin + dim; ++c) {
        CHECK_NEAR(Get(c), exact[static_cast<size_t>(c)],
                   1e-6 * (size + moved));
      }
    }
    CHECK_EQ(row.back(), kGuard);
  }

  std::mt19937 random{7};
  int64_t dim;
  int64_t words;
  std::vector<uint32_t> row;
  std::vector<float> gradient;
  std::vector<double> exact;   // embedding and three fields
  std::vector<double> travel;  // how far each number has moved
  double row_sum = 0.0;        // row-wise Adagrad
  uint32_t last_step = 0;      // smart decay
};

double Adam(const OptimizerConfig& p, uint32_t step, double g, double* m,
            double* v) {
  *m = p.beta1 * *m + (1 - p.beta1) * g;
  *v = p.beta2 * *v + (1 - p.beta2) * g * g;
  const double c1 = 1 - std::pow(p.beta1, step + 1.0);
  const double c2 = 1 - std::pow(p.beta2, step + 1.0);
  return *m / c1 / (std::sqrt(*v / c2) + p.eps);
}

// One column in double precision; returns what is taken from w.
template <class Optimizer>
double ExactStep(const OptimizerConfig& p, uint32_t step, int64_t c, double g,
                 Rows<Optimizer>* rows) {
  double* const w = rows->Field(0) + c;
  double* const a = rows->Field(1) + c;
  double* const b = rows->Field(2) + c;
  switch (p.kind) {
    case OptimizerKind::kSgd:
      return kRate * g;
    case OptimizerKind::kMomentum:
      *a = p.momentum * *a + g;
      return kRate * (p.nesterov ? g + p.momentum * *a : *a);
    case OptimizerKind::kAdam:
      return kRate * Adam(p, step, g, a, b);
    case OptimizerKind::kAmsgrad: {
      double* const most = rows->Field(3) + c;
      Adam(p, step, g, a, b);
      *most = std::fmax(*most, *b);
      return kRate * (*a / (1 - std::pow(p.beta1, step + 1.0))) /
             (std::sqrt(*most / (1 - std::pow(p.beta2, step + 1.0))) + p.eps);
    }
    case OptimizerKind::kAdagrad:
      *a += g * g;
      return kRate / (1 + step * p.lr_decay) * g / (std::sqrt(*a) + p.eps);
    case OptimizerKind::kRowwiseAdagrad:
      return kRate / (1 + step * p.lr_decay) * g /
             (std::sqrt(rows->row_sum) + p.eps);
    case OptimizerKind::kSmartDecayAdam: {
      const double k = step + 1.0 - rows->last_step;
      double catchup = 0;
      for (int i = 1; i < k; ++i) catchup += *a * std::pow(p.beta1, i);
      *a = std::pow(p.beta1, k) * *a + (1 - p.beta1) * g;
      *b = std::pow(p.beta2, k) * *b + (1 - p.beta2) * g * g;
      return kRate * (*a + catchup) / (std::sqrt(*b) + p.eps);
    }
    default: {  // FTRL
      const double before = *w;
      const double power = std::pow(*a + g * g, p.lr_power);
      *b += g - (power - std::pow(*a, p.lr_power)) / kRate * before;
      *a += g * g;
      if (std::fabs(*b) < p.lambda1) return before;
      return before - (std::copysign(p.lambda1, *b) - *b) /
                          ((p.beta + power) / kRate + p.lambda2);
    }
  }
}

template <class Optimizer>
void StepBoth(const OptimizerConfig& config, uint32_t step,
              Rows<Optimizer>* rows) {
  const std::vector<float>& gradient = rows->NewGradient();
  std::vector<double> g(gradient.begin(), gradient.end());
  double squares = 0;
  for (int64_t c = 0; c < rows->dim; ++c) {
    double& column = g[static_cast<size_t>(c)];
    column += config.weight_decay * rows->Field(0)[c];
    squares += column * column;
  }
  const std::vector<double> before = rows->exact;
  rows->row_sum += squares / static_cast<double>(rows->dim);
  for (int64_t c = 0; c < rows->dim; ++c) {
    double* const w = rows->Field(0) + c;
    const double decay = kRate * config.decoupled_weight_decay * *w;
    *w -= ExactStep(config, step, c, g[static_cast<size_t>(c)], rows);
    *w -= decay;
  }
  rows->last_step = step + 1;
  rows->AddTravel(before);
  const auto scalars =
      Optimizer::Prepare(config, static_cast<float>(kRate), step);
  UpdateRow<Optimizer>(scalars, rows->dim, gradient.data(), rows->row.data());
}

void CheckFormula(const OptimizerConfig& config) {
  DispatchOptimizer(config.kind, [&](auto optimizer) {
    for (const int64_t dim : kDims) {
      Rows<decltype(optimizer)> rows(config, dim);
      rows.row_sum = config.initial_accumulator_value;
      for (const uint32_t step : kSteps) StepBoth(config, step, &rows);
      rows.CheckClose();
    }
  });
}

TEST(SgdFollowsItsFormula) { CheckFormula(Config(OptimizerKind::kSgd)); }

TEST(MomentumFollowsItsFormula) {
  OptimizerConfig config = Config(OptimizerKind::kMomentum);
  CheckFormula(config);
  config.nesterov = true;
  CheckFormula(config);
}

TEST(AdamFollowsItsFormula) { CheckFormula(Config(OptimizerKind::kAdam)); }

TEST(AmsgradFollowsItsFormula) {
  OptimizerConfig config = Config(OptimizerKind::kAmsgrad);
  config.beta2 = 0.5;  // v falls, so that the maximum counts
  CheckFormula(config);
}

TEST(AdagradsFollowTheirFormulas) {
  OptimizerConfig config = Config(OptimizerKind::kAdagrad);
  config.lr_decay = 0.0;  // the decay of weights has the rate of the step
  config.decoupled_weight_decay = 0.1;
  CheckFormula(config);
  CheckFormula(Config(OptimizerKind::kAdagrad));
  CheckFormula(Config(OptimizerKind::kRowwiseAdagrad));
}

TEST(FtrlFollowsItsFormulaForAnyPower) {
  OptimizerConfig config = Config(OptimizerKind::kFtrl);
  for (const double power : {-0.5, -0.2, -0.05, 0.5, 0.7}) {
    config.lr_power = power;
    CheckFormula(config);
  }
  config.lr_power = 0.5;
  config.kind = OptimizerKind::kFtrlRoot;
  CheckFormula(config);
  config.lr_power = -0.5;
  config.kind = OptimizerKind::kFtrlInverseRoot;
  CheckFormula(config);
}

TEST(SmartDecayMakesUpForTheGaps) {
  CheckFormula(Config(OptimizerKind::kSmartDecayAdam));
}

TEST(WeightDecayReachesEveryOptimizer) {
  for (const OptimizerKind kind :
       {OptimizerKind::kSgd, OptimizerKind::kMomentum, OptimizerKind::kAdam,
        OptimizerKind::kRowwiseAdagrad, OptimizerKind::kFtrl,
        OptimizerKind::kSmartDecayAdam}) {
    OptimizerConfig config = Config(kind);
    config.weight_decay = 0.1;
    config.lr_decay = 0.0;
    CheckFormula(config);
    config.decoupled_weight_decay = 0.2;
    CheckFormula(config);
  }
}

TEST(WithoutCorrectionAdamTakesTheRateAsItIs) {
  OptimizerConfig config = Config(OptimizerKind::kAdam);
  config.bias_correction = false;
  const AdamScalars s = Adam::Prepare(config, 0.5F, 0);
  CHECK_EQ(s.step_size, 0.5F);
  CHECK_EQ(s.root_scale, 1.0F);
}

// u of LAMB is the step of Adam at a rate of 1, plus the decay.
TEST(LambScalesAdamByTheNormsOfTheRow) {
  OptimizerConfig config = Config(OptimizerKind::kLamb);
  config.weight_decay = 0.1;
  for (const int64_t dim : kDims) {
    Rows<Lamb> rows(config, dim);
    const std::vector<float>& g = rows.NewGradient();
    std::vector<double> u;
    double w_square = 0;
    double u_square = 0;
    for (int64_t c = 0; c < dim; ++c) {
      const double w = rows.Field(0)[c];
      u.push_back(Adam(config, 0, g[static_cast<size_t>(c)], rows.Field(1) + c,
                       rows.Field(2) + c) +
                  config.weight_decay * w);
      w_square += w * w;
      u_square += u.back() * u.back();
    }
    for (int64_t c = 0; c < dim; ++c) {
      rows.Field(0)[c] -=
          kRate * std::sqrt(w_square / u_square) * u[static_cast<size_t>(c)];
    }
    UpdateRow<Lamb>(Lamb::Prepare(config, static_cast<float>(kRate), 0), dim,
                    g.data(), rows.row.data());
    rows.CheckClose();
  }
}

TEST(LambTrustsNoZeroNorm) {
  const OptimizerConfig config = Config(OptimizerKind::kLamb);
  Rows<Lamb> rows(config, 2);
  const Lamb::Scalars s = Lamb::Prepare(config, 0.5F, 0);
  const float zero[2] = {};
  UpdateRow<Lamb>(s, 2, zero, rows.row.data());
  CHECK_EQ(rows.Get(0), static_cast<float>(rows.exact[0]));
  rows.Set(0, 0.0F);
  rows.Set(1, 0.0F);
  const float g[2] = {1.0F, -1.0F};
  UpdateRow<Lamb>(s, 2, g, rows.row.data());
  CHECK_NEAR(rows.Get(0), -0.5, 1e-5);
  CHECK_NEAR(rows.Get(1), 0.5, 1e-5);
}

// The order of operations decides the last bit, so it is written out once more.
void CheckElements(float g, float rate) {
  const OptimizerConfig config = Config(OptimizerKind::kMomentum);
  float w[3] = {0.3F, 0.3F, 0.3F};
  float m = 0.7F;
  float a = 0.1F;
  Sgd::Element(Sgd::Prepare(config, rate, 0), {}, g, &w[0], nullptr);
  const float sgd_step = rate * g;
  CHECK_EQ(w[0], 0.3F - sgd_step);
  Momentum::Element(Momentum::Prepare(config, rate, 0), {}, g, &w[1], &m);
  const float old_part = 0.9F * 0.7F;
  const float new_m = old_part + g;
  const float momentum_step = rate * new_m;
  CHECK_EQ(m, new_m);
  CHECK_EQ(w[1], 0.3F - momentum_step);
  Adagrad::Element(Adagrad::Prepare(config, rate, 0), {}, g, &w[2], &a);
  const float square = g * g;
  const float sum = 0.1F + square;
  const float slope = rate / (std::sqrt(sum) + 1e-6F);
  const float adagrad_step = slope * g;
  CHECK_EQ(a, sum);
  CHECK_EQ(w[2], 0.3F - adagrad_step);
}

TEST(ElementsAreTheseFloatOperations) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  for (int i = 0; i < 1000; ++i) CheckElements(normal(random), 0.01F);
}

TEST(SumsOverColumnsTakeTheFixedOrder) {
  const OptimizerConfig config = Config(OptimizerKind::kRowwiseAdagrad);
  const auto scalars = RowwiseAdagrad::Prepare(config, 1.0F, 0);
  for (const int64_t dim : {3, 13, 64}) {
    Rows<RowwiseAdagrad> rows(config, dim);
    for (int i = 0; i < 100; ++i) {
      const std::vector<float>& g = rows.NewGradient();
      const float before = rows.Get(dim);
      UpdateRow<RowwiseAdagrad>(scalars, dim, g.data(), rows.row.data());
      const float sum = SumColumns(dim, [&](int64_t c) {
        return g[static_cast<size_t>(c)] * g[static_cast<size_t>(c)];
      });
      CHECK_EQ(rows.Get(dim), before + sum / static_cast<float>(dim));
    }
  }
}

TEST(ARateOfZeroMovesNothing) {
  for (int32_t code = 0; code < kNumOptimizerCodes; ++code) {
    const OptimizerConfig config = Config(static_cast<OptimizerKind>(code));
    DispatchOptimizer(config.kind, [&](auto optimizer) {
      using Optimizer = decltype(optimizer);
      Rows<Optimizer> rows(config, 17);
      const auto scalars = Optimizer::Prepare(config, 0.0F, 3);
      UpdateRow<Optimizer>(scalars, 17, rows.NewGradient().data(),
                           rows.row.data());
      for (int64_t c = 0; c < 17; ++c) {
        CHECK_EQ(rows.Get(c), static_cast<float>(rows.Field(0)[c]));
      }
    });
  }
}

TEST(ANaNStaysInItsColumn) {
  const OptimizerConfig config = Config(OptimizerKind::kAdam);
  Rows<oneemb::Adam> rows(config, 8);
  std::vector<float> g(8, 1.0F);
  g[3] = std::numeric_limits<float>::quiet_NaN();
  UpdateRow<oneemb::Adam>(oneemb::Adam::Prepare(config, 0.1F, 0), 8, g.data(),
                          rows.row.data());
  for (int64_t c = 0; c < 8; ++c) CHECK_EQ(std::isnan(rows.Get(c)), c == 3);
}

TEST(InitialStateFillsTheRow) {
  const OptimizerConfig config = Config(OptimizerKind::kFtrl);
  const Rows<Ftrl> ftrl(config, 4);
  for (int64_t c = 0; c < 4; ++c) {
    CHECK_EQ(ftrl.Get(4 + c), 0.1F);
    CHECK_EQ(ftrl.Get(8 + c), 0.0F);
  }
  // 4 floats and a word, padded to a multiple of 4 words.
  const Rows<RowwiseAdagrad> padded(config, 4);
  CHECK_EQ(padded.words, 8);
  CHECK_EQ(padded.Get(4), 0.1F);
  for (size_t i = 5; i < 8; ++i) CHECK_EQ(padded.row[i], 0U);
  const Rows<SmartDecayAdam> smart(config, 3);
  CHECK_EQ(smart.words, 10);
  CHECK_EQ(smart.row[9], 0U);
}

TEST(DecodeReadsTheParametersInOrder) {
  double params[kOptimizerParams];
  for (int64_t i = 0; i < kOptimizerParams; ++i) {
    params[i] = static_cast<double>(i + 1);
  }
  const OptimizerConfig config = DecodeOptimizer(2, params, kOptimizerParams);
  CHECK_EQ(config.kind, OptimizerKind::kAdam);
  CHECK_EQ(config.momentum, 1.0);
  CHECK(config.nesterov);
  CHECK_EQ(config.beta1, 3.0);
  CHECK_EQ(config.beta2, 4.0);
  CHECK_EQ(config.eps, 5.0);
  CHECK(config.bias_correction);
  CHECK_EQ(config.weight_decay, 7.0);
  CHECK_EQ(config.decoupled_weight_decay, 8.0);
  CHECK_EQ(config.lr_decay, 9.0);
  CHECK_EQ(config.initial_accumulator_value, 10.0);
  CHECK_EQ(config.lr_power, 11.0);
  CHECK_EQ(config.lambda1, 12.0);
  CHECK_EQ(config.lambda2, 13.0);
  CHECK_EQ(config.beta, 14.0);
  params[10] = 0.5;
  CHECK_EQ(DecodeOptimizer(6, params, kOptimizerParams).kind,
           OptimizerKind::kFtrlRoot);
  params[10] = -0.5;
  CHECK_EQ(DecodeOptimizer(6, params, kOptimizerParams).kind,
           OptimizerKind::kFtrlInverseRoot);
}

TEST(WhatIsNotKnownIsNotDispatched) {
  const double params[kOptimizerParams] = {};
  for (const int32_t code : {-2, -1, kNumOptimizerCodes}) {
    const OptimizerConfig config =
        DecodeOptimizer(code, params, kOptimizerParams);
    CHECK_EQ(config.kind, OptimizerKind::kUnknown);
  }
  const OptimizerConfig config = DecodeOptimizer(0, params, 3);
  bool called = false;
  DispatchOptimizer(config.kind, [&](auto) { called = true; });
  CHECK(!called);
}

}  // namespace
}  // namespace oneemb
