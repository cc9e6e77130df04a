// What the handlers of cached tables share, on CPU and GPU. All of them take
// the arrays of a table first, in one order: index, rows, clock, counters,
// layout_version, generation, residency, store_nonce.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "ffi/decode_ffi.h"
#include "xla/ffi/api/ffi.h"

namespace oneemb {

constexpr size_t kCachedBuffers = 8;

// The arrays of a cached table as they came, and what they mean.
struct CachedCall {
  TableCall call;
  std::vector<xla::ffi::AnyBuffer> buffers;
  std::string store_name;
  uint32_t* generation = nullptr;
  const uint32_t* nonce = nullptr;  // [2]
  int64_t run = 0;
};

xla::ffi::Error DecodeCached(const xla::ffi::RemainingArgs& args,
                             const xla::ffi::Dictionary& attributes,
                             xla::ffi::RunId run, CachedCall* out);

// The same where a batch of ids follows the table, and then `more` buffers.
xla::ffi::Error DecodeCachedBatch(const xla::ffi::RemainingArgs& args,
                                  const xla::ffi::Dictionary& attributes,
                                  xla::ffi::RunId run, size_t more,
                                  CachedCall* out);

// Fails unless the table's arrays, all but the nonce, are the first results, in
// place, and the step of an update the next one.
xla::ffi::Error CheckCachedInPlace(const char* call, const CachedCall& cached,
                                   const xla::ffi::RemainingRets& results,
                                   const xla::ffi::AnyBuffer* step = nullptr);

// Fails unless every id of the batch can have a slot.
xla::ffi::Error CheckRoom(const TableCall& call);

}  // namespace oneemb
