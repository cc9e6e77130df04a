// The FFI handlers of cached tables.
#pragma once

#include "xla/ffi/api/ffi.h"

namespace oneemb {

XLA_FFI_DECLARE_HANDLER_SYMBOL(OneembStage);
XLA_FFI_DECLARE_HANDLER_SYMBOL(OneembPrefetch);
XLA_FFI_DECLARE_HANDLER_SYMBOL(OneembUpdateCached);
XLA_FFI_DECLARE_HANDLER_SYMBOL(OneembLookupCached);
XLA_FFI_DECLARE_HANDLER_SYMBOL(OneembReadCachedRows);
XLA_FFI_DECLARE_HANDLER_SYMBOL(OneembWriteCachedRows);
XLA_FFI_DECLARE_HANDLER_SYMBOL(OneembWriteDown);
XLA_FFI_DECLARE_HANDLER_SYMBOL(OneembFlush);

}  // namespace oneemb
