// The optimizer of a table and its hyper-parameters, as Python hands them over.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace oneemb {

// The codes are known to oneemb_jax/optimizers.py too.
enum class OptimizerKind : int32_t {
  kUnknown = -1,
  kSgd = 0,
  kMomentum = 1,
  kAdam = 2,
  kAmsgrad = 3,
  kAdagrad = 4,
  kRowwiseAdagrad = 5,
  kFtrl = 6,
  kSmartDecayAdam = 7,
  kLamb = 8,
  // Python says kFtrl; DecodeOptimizer knows the powers 1/2 and -1/2.
  kFtrlRoot,
  kFtrlInverseRoot,
};
constexpr int32_t kNumOptimizerCodes = 9;

// In double: 1 - beta2 rounded from a float beta2 would be off by 1e-5.
struct OptimizerConfig {
  OptimizerKind kind = OptimizerKind::kUnknown;
  double momentum = 0.0;
  bool nesterov = false;
  double beta1 = 0.0;
  double beta2 = 0.0;
  double eps = 0.0;
  bool bias_correction = false;
  double weight_decay = 0.0;            // coupled: part of the gradient
  double decoupled_weight_decay = 0.0;  // a step of its own, times the rate
  double lr_decay = 0.0;
  double initial_accumulator_value = 0.0;
  double lr_power = 0.0;
  double lambda1 = 0.0;
  double lambda2 = 0.0;
  double beta = 0.0;
};

// The numbers of an encoded optimizer, in the order of the fields above.
constexpr int64_t kOptimizerParams = 14;

// An unknown kind or a wrong number of parameters gives kUnknown.
ONEEMB_HD OptimizerConfig DecodeOptimizer(int32_t kind, const double* params,
                                          int64_t num_params) {
  OptimizerConfig config;
  if (kind < 0 || kind >= kNumOptimizerCodes ||
      num_params != kOptimizerParams) {
    return config;
  }
  config.kind = static_cast<OptimizerKind>(kind);
  config.momentum = params[0];
  config.nesterov = params[1] != 0.0;
  config.beta1 = params[2];
  config.beta2 = params[3];
  config.eps = params[4];
  config.bias_correction = params[5] != 0.0;
  config.weight_decay = params[6];
  config.decoupled_weight_decay = params[7];
  config.lr_decay = params[8];
  config.initial_accumulator_value = params[9];
  config.lr_power = params[10];
  config.lambda1 = params[11];
  config.lambda2 = params[12];
  config.beta = params[13];
  if (config.kind == OptimizerKind::kFtrl && config.lr_power == 0.5) {
    config.kind = OptimizerKind::kFtrlRoot;
  } else if (config.kind == OptimizerKind::kFtrl && config.lr_power == -0.5) {
    config.kind = OptimizerKind::kFtrlInverseRoot;
  }
  return config;
}

}  // namespace oneemb
