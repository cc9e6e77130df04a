// What the lookup handlers of plain and of cached tables share.
#pragma once

#include <cstdint>

#include "cpu/lookup.h"
#include "xla/ffi/api/ffi.h"

namespace oneemb {

// The results of a lookup.
struct LookupResults {
  xla::ffi::AnyBuffer activations;
  xla::ffi::AnyBuffer slots;
  xla::ffi::AnyBuffer seen_version;
  xla::ffi::AnyBuffer counts;
};

// Checks them, and copies the table's layout version to where update finds it.
xla::ffi::Error DecodeLookupOutput(const IdsView& ids, int64_t embedding_dim,
                                   const xla::ffi::AnyBuffer& layout_version,
                                   const LookupResults& results,
                                   LookupOutput* out);

}  // namespace oneemb
