// What the update handlers of plain and of cached tables share.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/update.h"
#include "ffi/decode_ffi.h"
#include "xla/ffi/api/ffi.h"

namespace oneemb {

// The arguments of an update that are no table and no lookup.
struct UpdateBuffers {
  const xla::ffi::AnyBuffer& step;
  const xla::ffi::AnyBuffer& generation;
  const xla::ffi::AnyBuffer& learning_rate;
  const xla::ffi::AnyBuffer& grad_scale;
  const xla::ffi::AnyBuffer& apply;
};

// Checks and decodes them, and the lookups from argument `first` on.
xla::ffi::Error DecodeUpdateArgs(const UpdateBuffers& buffers,
                                 const xla::ffi::RemainingArgs& lookups,
                                 size_t first,
                                 const xla::ffi::Dictionary& attributes,
                                 int64_t embedding_dim, UpdateArgs* args);

}  // namespace oneemb
