// What the update handlers of plain and of cached tables share.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/update.h"
#include "ffi/decode_ffi.h"
#include "xla/ffi/api/ffi.h"

namespace oneemb {

// DecodeUpdate, and the scalars themselves.
xla::ffi::Error DecodeUpdateArgs(const xla::ffi::Dictionary& attributes,
                                 const UpdateBuffers& buffers,
                                 const xla::ffi::RemainingArgs& lookups,
                                 size_t first, int64_t embedding_dim,
                                 UpdateArgs* args);

}  // namespace oneemb
