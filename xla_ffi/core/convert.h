// Loads and stores of the float types that activations and gradients have.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/numeric.h"
#include "core/table_view.h"

namespace oneemb {

struct Float32Access {
  using Storage = float;
  ONEEMB_HD static float Load(float x) { return x; }
  ONEEMB_HD static float Store(float x) { return x; }
};

struct BFloat16Access {
  using Storage = uint16_t;
  ONEEMB_HD static float Load(uint16_t x) { return BFloat16ToFloat(x); }
  ONEEMB_HD static uint16_t Store(float x) { return FloatToBFloat16(x); }
};

struct Float16Access {
  using Storage = uint16_t;
  ONEEMB_HD static float Load(uint16_t x) { return Float16ToFloat(x); }
  ONEEMB_HD static uint16_t Store(float x) { return FloatToFloat16(x); }
};

// Calls f with the access type of `type`.
template <class F>
void DispatchFloat(FloatType type, const F& f) {
  switch (type) {
    case FloatType::kFloat32:
      return f(Float32Access{});
    case FloatType::kBFloat16:
      return f(BFloat16Access{});
    case FloatType::kFloat16:
      return f(Float16Access{});
  }
}

}  // namespace oneemb
