// The optimizers: each formula once, for CPU loops and CUDA kernels alike.
//
// An optimizer is a struct of static functions, derived from OptimizerBase.
// One update of one row goes
//
//   s = Prepare(config, learning_rate, step)     once for all rows; step counts
//                                                the updates before this one
//   Terms(s, g, w, state, terms)                 every column, if kSums > 0;
//                                                may update the state
//   sums[i] = the sum of terms[i] over the columns, by core/summation.h
//   row = BeginRow(s, dim, sums, words)          if kSums or kRowWords > 0
//   Element(s, row, g, w, state)                 every column
//
// where g is the row's summed and scaled gradient in that column, *w the
// embedding, state[0, kStateFields) the column's state and words[0, kRowWords)
// the row's. A driver calls ColumnTerms and ColumnStep at the end of this page,
// which add weight decay. Only + - * / and square roots, and for FTRL a power,
// appear: all of them give the same bits on every machine.
#pragma once

#include <cstdint>

#include "core/macros.h"
#include "core/numeric.h"
#include "core/optimizer_config.h"

namespace oneemb {

// Weight decay works alike for all optimizers: coupled (L2), it joins the
// gradient; decoupled, it is a step of its own that no statistic sees
// (I. Loshchilov and F. Hutter, "Decoupled weight decay regularization", 2019).
struct WeightDecay {
  float coupled = 0.0F;    // g += coupled * w
  float decoupled = 0.0F;  // w -= decoupled * w; holds the learning rate

  ONEEMB_HD bool any() const { return coupled != 0.0F || decoupled != 0.0F; }
};

ONEEMB_HD WeightDecay PrepareDecay(const OptimizerConfig& config,
                                   double learning_rate) {
  WeightDecay decay;
  decay.coupled = static_cast<float>(config.weight_decay);
  decay.decoupled =
      static_cast<float>(learning_rate * config.decoupled_weight_decay);
  return decay;
}

// What an optimizer does not say otherwise.
struct OptimizerBase {
  static constexpr int kStateFields = 0;  // floats of state for every column
  static constexpr int kRowWords = 0;     // 32-bit words of state for the row
  static constexpr int kSums = 0;         // sums over columns a row needs
  struct Row {};                          // what BeginRow tells Element

  ONEEMB_HD static float InitialField(const OptimizerConfig& /*config*/,
                                      int /*field*/) {
    return 0.0F;
  }
  ONEEMB_HD static uint32_t InitialWord(const OptimizerConfig& /*config*/,
                                        int /*word*/) {
    return 0;
  }
};

// w -= lr g
struct Sgd : OptimizerBase {
  struct Scalars {
    WeightDecay decay;
    float learning_rate;
  };

  ONEEMB_HD static Scalars Prepare(const OptimizerConfig& config,
                                   float learning_rate, uint32_t /*step*/) {
    return {PrepareDecay(config, learning_rate), learning_rate};
  }

  ONEEMB_HD static void Element(const Scalars& s, const Row& /*row*/, float g,
                                float* w, float* /*state*/) {
    *w -= s.learning_rate * g;
  }
};

// m = mu m + g;  w -= lr m;  by Nesterov: w -= lr (g + mu m).
// OneFlow's and PyTorch's SGD without dampening.
struct Momentum : OptimizerBase {
  static constexpr int kStateFields = 1;
  struct Scalars {
    WeightDecay decay;
    float learning_rate;
    float momentum;
    bool nesterov;
  };

  ONEEMB_HD static Scalars Prepare(const OptimizerConfig& config,
                                   float learning_rate, uint32_t /*step*/) {
    return {PrepareDecay(config, learning_rate), learning_rate,
            static_cast<float>(config.momentum), config.nesterov};
  }

  ONEEMB_HD static void Element(const Scalars& s, const Row& /*row*/, float g,
                                float* w, float* state) {
    const float m = s.momentum * state[0] + g;
    state[0] = m;
    const float ahead = g + s.momentum * m;
    *w -= s.learning_rate * (s.nesterov ? ahead : m);
  }
};

// The moving averages of the gradient and of its square that Adam introduced:
// m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2.
struct MomentScalars {
  float beta1;
  float beta2;
  float new1;  // 1 - beta1
  float new2;  // 1 - beta2
};

ONEEMB_HD MomentScalars PrepareMoments(const OptimizerConfig& config) {
  return {static_cast<float>(config.beta1), static_cast<float>(config.beta2),
          static_cast<float>(1.0 - config.beta1),
          static_cast<float>(1.0 - config.beta2)};
}

ONEEMB_HD void UpdateMoments(const MomentScalars& s, float g, float* m,
                             float* v) {
  *m = s.beta1 * *m + s.new1 * g;
  *v = s.beta2 * *v + s.new2 * (g * g);
}

// What Adam, AMSGrad and LAMB share. Bias correction divides m by c1 and v by
// c2, c = 1 - beta^(step + 1), with the step of the table: a row that was not
// in a batch sees the same correction as one that was.
struct AdamScalars {
  WeightDecay decay;
  MomentScalars moments;
  float step_size;   // lr / c1
  float root_scale;  // 1 / sqrt(c2)
  float eps;
};

struct AdamBase : OptimizerBase {
  using Scalars = AdamScalars;

  ONEEMB_HD static Scalars Prepare(const OptimizerConfig& config,
                                   float learning_rate, uint32_t step) {
    const uint64_t t = uint64_t{step} + 1;
    const bool correct = config.bias_correction;
    const double c1 = correct ? 1.0 - PowInt(config.beta1, t) : 1.0;
    const double c2 = correct ? 1.0 - PowInt(config.beta2, t) : 1.0;
    return {PrepareDecay(config, learning_rate), PrepareMoments(config),
            static_cast<float>(learning_rate / c1),
            static_cast<float>(1.0 / Sqrt(c2)), static_cast<float>(config.eps)};
  }
};

// w -= (lr / c1) m / (sqrt(v) / sqrt(c2) + eps).
// D. P. Kingma and J. Ba, "Adam: A method for stochastic optimization", 2015;
// OneFlow's form. With decoupled decay it is AdamW.
struct Adam : AdamBase {
  static constexpr int kStateFields = 2;

  ONEEMB_HD static void Element(const Scalars& s, const Row& /*row*/, float g,
                                float* w, float* state) {
    UpdateMoments(s.moments, g, &state[0], &state[1]);
    *w -= s.step_size * state[0] / (Sqrt(state[1]) * s.root_scale + s.eps);
  }
};

// Adam with the largest v so far in the place of v.
// S. J. Reddi, S. Kale and S. Kumar, "On the convergence of Adam and beyond",
// 2018; PyTorch's form, which takes the maximum before the correction.
struct Amsgrad : AdamBase {
  static constexpr int kStateFields = 3;

  ONEEMB_HD static void Element(const Scalars& s, const Row& /*row*/, float g,
                                float* w, float* state) {
    UpdateMoments(s.moments, g, &state[0], &state[1]);
    const float largest = state[1] > state[2] ? state[1] : state[2];
    state[2] = largest;
    *w -= s.step_size * state[0] / (Sqrt(largest) * s.root_scale + s.eps);
  }
};

// What the two Adagrads share: the rate falls as lr / (1 + step * lr_decay).
struct AdagradScalars {
  WeightDecay decay;
  float learning_rate;
  float eps;
};

struct AdagradBase : OptimizerBase {
  using Scalars = AdagradScalars;

  ONEEMB_HD static Scalars Prepare(const OptimizerConfig& config,
                                   float learning_rate, uint32_t step) {
    const double rate = learning_rate / (1.0 + step * config.lr_decay);
    return {PrepareDecay(config, rate), static_cast<float>(rate),
            static_cast<float>(config.eps)};
  }
};

// a += g^2;  w -= lr / (sqrt(a) + eps) g.
// J. Duchi, E. Hazan and Y. Singer, "Adaptive subgradient methods for online
// learning and stochastic optimization", 2011; OneFlow's form.
struct Adagrad : AdagradBase {
  static constexpr int kStateFields = 1;

  ONEEMB_HD static float InitialField(const OptimizerConfig& config,
                                      int /*field*/) {
    return static_cast<float>(config.initial_accumulator_value);
  }

  ONEEMB_HD static void Element(const Scalars& s, const Row& /*row*/, float g,
                                float* w, float* state) {
    state[0] += g * g;
    *w -= s.learning_rate / (Sqrt(state[0]) + s.eps) * g;
  }
};

// Adagrad with one accumulator a row: a += mean of g^2 over the columns.
// FBGEMM's exact_row_wise_adagrad.
struct RowwiseAdagrad : AdagradBase {
  static constexpr int kRowWords = 1;  // the accumulator, a float
  static constexpr int kSums = 1;
  struct Row {
    float rate;
  };

  ONEEMB_HD static uint32_t InitialWord(const OptimizerConfig& config,
                                        int /*word*/) {
    return FloatBits(static_cast<float>(config.initial_accumulator_value));
  }

  ONEEMB_HD static void Terms(const Scalars& /*s*/, float g, float /*w*/,
                              float* /*state*/, float* terms) {
    terms[0] = g * g;
  }

  ONEEMB_HD static Row BeginRow(const Scalars& s, int64_t dim,
                                const float* sums, uint32_t* words) {
    const float accumulator =
        FloatFromBits(words[0]) + sums[0] / static_cast<float>(dim);
    words[0] = FloatBits(accumulator);
    return {s.learning_rate / (Sqrt(accumulator) + s.eps)};
  }

  ONEEMB_HD static void Element(const Scalars& /*s*/, const Row& row, float g,
                                float* w, float* /*state*/) {
    *w -= row.rate * g;
  }
};

// How FTRL raises its accumulator to the power p. For p = 1/2 and -1/2 that is
// a square root, ten times as fast on a CPU.
struct AnyPower {
  ONEEMB_HD static float Of(float x, float p) { return Pow(x, p); }
};
struct RootPower {
  ONEEMB_HD static float Of(float x, float /*p*/) { return Sqrt(x); }
};
struct InverseRootPower {
  ONEEMB_HD static float Of(float x, float /*p*/) { return 1.0F / Sqrt(x); }
};

// a' = a + g^2;  sigma = (a'^p - a^p) / lr;  z += g - sigma w;
// w = 0 if |z| < l1, else (sign(z) l1 - z) / ((beta + a'^p) / lr + l2).
// H. B. McMahan et al., "Ad click prediction: a view from the trenches", 2013,
// where p = 1/2; OneFlow's form, which takes any p, and -1/2 by default. A rate
// of zero, for which the formula has no value, leaves the row alone, and so
// does a subnormal one: a quotient by it is more than a float holds.
template <class Power>
struct FtrlWith : OptimizerBase {
  static constexpr int kStateFields = 2;
  struct Scalars {
    WeightDecay decay;
    float learning_rate;
    float power;
    float lambda1;
    float lambda2;
    float beta;
  };

  ONEEMB_HD static float InitialField(const OptimizerConfig& config,
                                      int field) {
    return field == 0 ? static_cast<float>(config.initial_accumulator_value)
                      : 0.0F;
  }

  ONEEMB_HD static Scalars Prepare(const OptimizerConfig& config,
                                   float learning_rate, uint32_t /*step*/) {
    return {
        PrepareDecay(config, learning_rate), learning_rate,
        static_cast<float>(config.lr_power), static_cast<float>(config.lambda1),
        static_cast<float>(config.lambda2),  static_cast<float>(config.beta)};
  }

  ONEEMB_HD static void Element(const Scalars& s, const Row& /*row*/, float g,
                                float* w, float* state) {
    const float accumulator = state[0] + g * g;
    const float power = Power::Of(accumulator, s.power);
    const float sigma =
        (power - Power::Of(state[0], s.power)) / s.learning_rate;
    const float z = state[1] + (g - sigma * *w);
    const float threshold = z < 0.0F ? -s.lambda1 : s.lambda1;
    const float moved =
        (threshold - z) / ((s.beta + power) / s.learning_rate + s.lambda2);
    const bool small = (z < 0.0F ? -z : z) < s.lambda1;
    constexpr float kSmallestNormal = 1.17549435e-38F;
    const bool frozen = s.learning_rate < kSmallestNormal;
    state[0] = frozen ? state[0] : accumulator;
    state[1] = frozen ? state[1] : z;
    *w = frozen ? *w : (small ? 0.0F : moved);
  }
};
using Ftrl = FtrlWith<AnyPower>;
using FtrlRoot = FtrlWith<RootPower>;
using FtrlInverseRoot = FtrlWith<InverseRootPower>;

// Adam that makes up for the k - 1 updates since the row's last one, in which
// its gradient was zero: the averages decay k times, and the steps that m alone
// would have made are taken at once. No bias correction.
//   catchup = m b1 (1 - b1^(k-1)) / (1 - b1)
//   m = b1^k m + (1 - b1) g;  v = b2^k v + (1 - b2) g^2
//   w -= lr (m + catchup) / (sqrt(v) + eps)
// Caffe2's SmartDecaySparseAdam, as in OneFlow.
struct SmartDecayAdam : OptimizerBase {
  static constexpr int kStateFields = 2;
  static constexpr int kRowWords = 1;  // updates of the table at the last one
  struct Scalars {
    WeightDecay decay;
    double beta1;
    double beta2;
    float new1;
    float new2;
    float learning_rate;
    float eps;
    uint32_t now;  // updates of the table, this one included
  };
  struct Row {
    float decay1;  // b1^k
    float decay2;
    float catchup;  // what m is multiplied with
  };

  ONEEMB_HD static Scalars Prepare(const OptimizerConfig& config,
                                   float learning_rate, uint32_t step) {
    return {PrepareDecay(config, learning_rate),
            config.beta1,
            config.beta2,
            static_cast<float>(1.0 - config.beta1),
            static_cast<float>(1.0 - config.beta2),
            learning_rate,
            static_cast<float>(config.eps),
            step + 1};
  }

  ONEEMB_HD static Row BeginRow(const Scalars& s, int64_t /*dim*/,
                                const float* /*sums*/, uint32_t* words) {
    const uint32_t k = s.now - words[0];
    words[0] = s.now;
    const double skipped = k > 1 ? 1.0 - PowInt(s.beta1, k - 1) : 0.0;
    return {static_cast<float>(PowInt(s.beta1, k)),
            static_cast<float>(PowInt(s.beta2, k)),
            static_cast<float>(s.beta1 * skipped / (1.0 - s.beta1))};
  }

  ONEEMB_HD static void Element(const Scalars& s, const Row& row, float g,
                                float* w, float* state) {
    const float catchup = row.catchup * state[0];
    state[0] = row.decay1 * state[0] + s.new1 * g;
    state[1] = row.decay2 * state[1] + s.new2 * (g * g);
    *w -= s.learning_rate * (state[0] + catchup) / (Sqrt(state[1]) + s.eps);
  }
};

// u = (m / c1) / (sqrt(v / c2) + eps) + wd w;  w -= lr (|w| / |u|) u, with the
// norms over one row, and 1 for the ratio when either norm is 0.
// Y. You et al., "Large batch optimization for deep learning: training BERT in
// 76 minutes", 2020, with a row in the place of a layer.
struct Lamb : OptimizerBase {
  static constexpr int kStateFields = 2;
  static constexpr int kSums = 2;
  struct Scalars {
    WeightDecay decay;  // none: u has its own
    AdamScalars adam;   // step_size is 1 / c1
    float learning_rate;
    float weight_decay;
  };
  struct Row {
    float rate;
  };

  ONEEMB_HD static Scalars Prepare(const OptimizerConfig& config,
                                   float learning_rate, uint32_t step) {
    Scalars s;
    s.adam = AdamBase::Prepare(config, 1.0F, step);
    s.learning_rate = learning_rate;
    s.weight_decay = static_cast<float>(config.weight_decay);
    return s;
  }

  ONEEMB_HD static float Direction(const Scalars& s, float w,
                                   const float* state) {
    return s.adam.step_size * state[0] /
               (Sqrt(state[1]) * s.adam.root_scale + s.adam.eps) +
           s.weight_decay * w;
  }

  ONEEMB_HD static void Terms(const Scalars& s, float g, float w, float* state,
                              float* terms) {
    UpdateMoments(s.adam.moments, g, &state[0], &state[1]);
    const float u = Direction(s, w, state);
    terms[0] = w * w;
    terms[1] = u * u;
  }

  ONEEMB_HD static Row BeginRow(const Scalars& s, int64_t /*dim*/,
                                const float* sums, uint32_t* /*words*/) {
    const float w_norm = Sqrt(sums[0]);
    const float u_norm = Sqrt(sums[1]);
    const bool trusted = w_norm > 0.0F && u_norm > 0.0F;
    return {s.learning_rate * (trusted ? w_norm / u_norm : 1.0F)};
  }

  ONEEMB_HD static void Element(const Scalars& s, const Row& row, float /*g*/,
                                float* w, float* state) {
    *w -= row.rate * Direction(s, *w, state);
  }
};

// Calls f with an object of the optimizer's type; not at all for kUnknown.
ONEEMB_ANY_CALLBACK template <class F>
ONEEMB_HD void DispatchOptimizer(OptimizerKind kind, const F& f) {
  switch (kind) {
    case OptimizerKind::kUnknown:
      return;
    case OptimizerKind::kSgd:
      return f(Sgd{});
    case OptimizerKind::kMomentum:
      return f(Momentum{});
    case OptimizerKind::kAdam:
      return f(Adam{});
    case OptimizerKind::kAmsgrad:
      return f(Amsgrad{});
    case OptimizerKind::kAdagrad:
      return f(Adagrad{});
    case OptimizerKind::kRowwiseAdagrad:
      return f(RowwiseAdagrad{});
    case OptimizerKind::kFtrl:
      return f(Ftrl{});
    case OptimizerKind::kSmartDecayAdam:
      return f(SmartDecayAdam{});
    case OptimizerKind::kLamb:
      return f(Lamb{});
    case OptimizerKind::kFtrlRoot:
      return f(FtrlRoot{});
    case OptimizerKind::kFtrlInverseRoot:
      return f(FtrlInverseRoot{});
  }
}

// Word `word` >= dim of a new row: the optimizer's initial state, and zeros
// where the row is padded.
template <class Optimizer>
ONEEMB_HD uint32_t InitialStateWord(const OptimizerConfig& config, int64_t dim,
                                    int64_t word) {
  // 32-bit divisions take a fraction of the time on a GPU.
  const int64_t field =
      int64_t{static_cast<uint32_t>(word) / static_cast<uint32_t>(dim)} - 1;
  if (field < Optimizer::kStateFields) {
    return FloatBits(Optimizer::InitialField(config, static_cast<int>(field)));
  }
  const int64_t row_word = word - (1 + Optimizer::kStateFields) * dim;
  if (row_word >= Optimizer::kRowWords) return 0;
  return Optimizer::InitialWord(config, static_cast<int>(row_word));
}

// What a driver does in every column: weight decay, then the optimizer. kDecays
// is s.decay.any(), tested once a row instead of in every column.
template <class Optimizer, bool kDecays>
ONEEMB_HD void ColumnTerms(const typename Optimizer::Scalars& s, float g,
                           float w, float* state, float* terms) {
  if constexpr (kDecays) g += s.decay.coupled * w;
  Optimizer::Terms(s, g, w, state, terms);
}

template <class Optimizer, bool kDecays>
ONEEMB_HD void ColumnStep(const typename Optimizer::Scalars& s,
                          const typename Optimizer::Row& row, float g, float* w,
                          float* state) {
  if constexpr (kDecays) {
    const float before = *w;
    Optimizer::Element(s, row, g + s.decay.coupled * before, w, state);
    *w -= s.decay.decoupled * before;
  } else {
    Optimizer::Element(s, row, g, w, state);
  }
}

}  // namespace oneemb
