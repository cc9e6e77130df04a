#include "ffi/decode_cached_ffi.h"

#include <string_view>

namespace oneemb {

namespace ffi = xla::ffi;

ffi::Error DecodeCached(const ffi::RemainingArgs& args,
                        const ffi::Dictionary& attributes, ffi::RunId run,
                        CachedCall* out) {
  for (size_t i = 0; i < args.size(); ++i) {
    ffi::ErrorOr<ffi::AnyBuffer> buffer = args.get<ffi::AnyBuffer>(i);
    if (buffer.has_error()) return buffer.error();
    out->buffers.push_back(*buffer);
  }
  if (out->buffers.size() < kCachedBuffers) {
    return ffi::Error::InvalidArgument("eight arrays of a table are needed");
  }
  const std::vector<ffi::AnyBuffer>& b = out->buffers;
  TableView* const table = &out->call.table;
  ONEEMB_RETURN_IF_ERROR(
      DecodeTable(attributes, {b[0], b[1], b[2], b[3], b[4]}, &out->call));
  const auto name = attributes.get<std::string_view>("store");
  if (name.has_error()) {
    return ffi::Error::InvalidArgument("attribute store: " +
                                       name.error().message());
  }
  ONEEMB_RETURN_IF_ERROR(CheckBuffer("generation", b[5], ffi::U32, {1}));
  ONEEMB_RETURN_IF_ERROR(
      CheckBuffer("residency", b[6], ffi::U32, {table->capacity, 2}));
  ONEEMB_RETURN_IF_ERROR(CheckBuffer("store_nonce", b[7], ffi::U32, {1, 2}));
  out->store_name = std::string(*name);
  out->generation = b[5].typed_data<uint32_t>();
  table->residency = static_cast<SlotResidency*>(b[6].untyped_data());
  out->nonce = b[7].typed_data<uint32_t>();
  out->run = run.run_id;
  return ffi::Error::Success();
}

ffi::Error DecodeCachedBatch(const ffi::RemainingArgs& args,
                             const ffi::Dictionary& attributes, ffi::RunId run,
                             size_t more, CachedCall* out) {
  ONEEMB_RETURN_IF_ERROR(DecodeCached(args, attributes, run, out));
  if (out->buffers.size() != kCachedBuffers + 2 + more) {
    return ffi::Error::InvalidArgument("wrong number of arguments");
  }
  return DecodeIds(out->buffers[kCachedBuffers],
                   out->buffers[kCachedBuffers + 1], &out->call.ids);
}

ffi::Error CheckCachedInPlace(const char* call, const CachedCall& cached,
                              const ffi::RemainingRets& results,
                              const ffi::AnyBuffer* step) {
  std::vector<const ffi::AnyBuffer*> in_place;
  in_place.reserve(kCachedBuffers);
  for (size_t i = 0; i + 1 < kCachedBuffers; ++i) {
    in_place.push_back(&cached.buffers[i]);
  }
  if (step != nullptr) in_place.push_back(step);
  return CheckInPlace(call, in_place, results);
}

ffi::Error CheckRoom(const TableCall& call) {
  if (call.ids.size <= call.table.capacity) return ffi::Error::Success();
  return ffi::Error::InvalidArgument("ids: more than the cache has slots");
}

}  // namespace oneemb
