// The FFI handlers of the CPU, one a custom call.
#pragma once

#include "xla/ffi/api/ffi.h"

namespace oneemb {

XLA_FFI_DECLARE_HANDLER_SYMBOL(OneembLookup);
XLA_FFI_DECLARE_HANDLER_SYMBOL(OneembUpdate);
XLA_FFI_DECLARE_HANDLER_SYMBOL(OneembGlobalNorm);
XLA_FFI_DECLARE_HANDLER_SYMBOL(OneembCreate);
XLA_FFI_DECLARE_HANDLER_SYMBOL(OneembGrow);
XLA_FFI_DECLARE_HANDLER_SYMBOL(OneembReadRows);
XLA_FFI_DECLARE_HANDLER_SYMBOL(OneembWriteRows);

}  // namespace oneemb
