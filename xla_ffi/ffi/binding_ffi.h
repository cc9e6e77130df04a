// Defines handlers: how XLA calls one follows from the types of its parameters.
//
// Only handlers include this: kernels do not know XLA.
#pragma once

#include <new>
#include <type_traits>
#include <utility>

#include "xla/ffi/api/ffi.h"

// Defines the C function `symbol`, a handler that calls `function`; then traits
// of it, in braces. A lack of memory becomes an error of the call.
#define ONEEMB_DEFINE_HANDLER(symbol, function, ...)                       \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(symbol, ::oneemb::Guarded<function>::Call, \
                                ::oneemb::BindingOf(function), ##__VA_ARGS__)

namespace oneemb {

// The binding with one more parameter. What is neither argument, result nor
// attribute comes with the call; a pointer is the stream of a GPU.
template <class Param, class Binding>
auto BindOne(Binding&& binding) {
  namespace ffi = xla::ffi;
  using Ret = typename ffi::RetBinding<Param>::Ret;
  if constexpr (std::is_same_v<Param, ffi::AnyBuffer>) {
    return std::forward<Binding>(binding).template Arg<Param>();
  } else if constexpr (std::is_same_v<Param, ffi::RemainingArgs>) {
    return std::forward<Binding>(binding).RemainingArgs();
  } else if constexpr (!std::is_void_v<Ret>) {
    return std::forward<Binding>(binding).template Ret<Ret>();
  } else if constexpr (std::is_same_v<Param, ffi::RemainingRets>) {
    return std::forward<Binding>(binding).RemainingRets();
  } else if constexpr (std::is_same_v<Param, ffi::Dictionary>) {
    return std::forward<Binding>(binding).Attrs();
  } else if constexpr (std::is_pointer_v<Param>) {
    return std::forward<Binding>(binding)
        .template Ctx<ffi::PlatformStream<Param>>();
  } else {
    return std::forward<Binding>(binding).template Ctx<Param>();
  }
}

template <class Param, class... Rest, class Binding>
auto BindAll(Binding&& binding) {
  if constexpr (sizeof...(Rest) == 0) {
    return BindOne<Param>(std::forward<Binding>(binding));
  } else {
    return BindAll<Rest...>(BindOne<Param>(std::forward<Binding>(binding)));
  }
}

// No exception may get to XLA.
template <auto kFunction>
struct Guarded;
template <class... Params, xla::ffi::Error (*kFunction)(Params...)>
struct Guarded<kFunction> {
  static xla::ffi::Error Call(Params... params) {
    try {
      return kFunction(std::move(params)...);
    } catch (const std::bad_alloc&) {
      return {xla::ffi::ErrorCode::kResourceExhausted,
              "oneemb_jax: no memory on the host"};
    }
  }
};

template <class... Params>
auto BindingOf(xla::ffi::Error (*)(Params...)) {
  return BindAll<Params...>(xla::ffi::Ffi::Bind());
}

}  // namespace oneemb
