// The handlers of cached tables.
#include <cstring>
#include <memory>
#include <vector>

#include "cpu/ffi_util.h"
#include "cpu/memory.h"
#include "cpu/update_ffi.h"
#include "ffi/decode_cached_ffi.h"
#include "tier/cached_ops.h"
#include "tier/handlers.h"

namespace oneemb {

namespace ffi = xla::ffi;

namespace {

// The arrays of a cached table as they came, and its Store.
struct Arguments : CachedCall {
  std::shared_ptr<TableStore> store;

  CachedTable table() const {
    uint64_t nonce_value = 0;
    std::memcpy(&nonce_value, nonce, sizeof(nonce_value));
    return {call.table, call.rules, store, nonce_value, generation, run};
  }
};

ffi::Error Decode(const ffi::RemainingArgs& args,
                  const ffi::Dictionary& attributes, ffi::RunId run,
                  Arguments* out) {
  ONEEMB_RETURN_IF_ERROR(DecodeCached(args, attributes, run, out));
  out->store = StoreOf(out->store_name);
  return ffi::Error::Success();
}

ffi::Error DecodeBatch(const ffi::RemainingArgs& args,
                       const ffi::Dictionary& attributes, ffi::RunId run,
                       size_t more, Arguments* out) {
  ONEEMB_RETURN_IF_ERROR(DecodeCachedBatch(args, attributes, run, more, out));
  out->store = StoreOf(out->store_name);
  return ffi::Error::Success();
}

ffi::Error StageHandler(ffi::ThreadPool pool, ffi::RunId run,
                        ffi::RemainingArgs args, ffi::RemainingRets results,
                        ffi::Dictionary attributes) {
  Arguments arguments;
  ONEEMB_RETURN_IF_ERROR(DecodeBatch(args, attributes, run, 0, &arguments));
  ONEEMB_RETURN_IF_ERROR(CheckCachedInPlace("stage", arguments, results));
  ONEEMB_RETURN_IF_ERROR(CheckRoom(arguments.call));
  FfiParallel parallel(pool);
  return ToFfi("stage",
               Stage(&parallel, arguments.table(), arguments.call.ids));
}

ffi::Error PrefetchHandler(ffi::ThreadPool pool, ffi::RunId run,
                           ffi::RemainingArgs args, ffi::RemainingRets results,
                           ffi::Dictionary attributes) {
  Arguments arguments;
  ONEEMB_RETURN_IF_ERROR(DecodeBatch(args, attributes, run, 0, &arguments));
  ONEEMB_RETURN_IF_ERROR(CheckInPlace(
      "prefetch", {&arguments.buffers[2], &arguments.buffers[5]}, results));
  FfiParallel parallel(pool);
  return ToFfi("prefetch",
               Prefetch(&parallel, arguments.table(), arguments.call.ids));
}

ffi::Error UpdateCachedHandler(ffi::ThreadPool pool, ffi::RunId run,
                               ffi::RemainingArgs args,
                               ffi::RemainingRets results,
                               ffi::Dictionary attributes) {
  // Behind the table: step, learning_rate, grad_scale, apply, and the lookups.
  constexpr size_t kFirst = kCachedBuffers;
  constexpr size_t kScalars = 4;
  Arguments arguments;
  UpdateArgs update{};
  ONEEMB_RETURN_IF_ERROR(Decode(args, attributes, run, &arguments));
  const std::vector<ffi::AnyBuffer>& b = arguments.buffers;
  if (b.size() < kFirst + kScalars) {
    return ffi::Error::InvalidArgument("wrong number of arguments");
  }
  ONEEMB_RETURN_IF_ERROR(DecodeUpdateArgs(
      attributes,
      {b[kFirst], b[5], b[kFirst + 1], b[kFirst + 2], b[kFirst + 3]}, args,
      kFirst + kScalars, arguments.call.rules.embedding_dim, &update));
  ONEEMB_RETURN_IF_ERROR(
      CheckCachedInPlace("update", arguments, results, &b[kFirst]));
  FfiParallel parallel(pool);
  return ToFfi("update", UpdateCached(&parallel, arguments.table(), update));
}

ffi::Error LookupCachedHandler(ffi::ThreadPool pool, ffi::RunId run,
                               ffi::RemainingArgs args,
                               ffi::Result<ffi::AnyBuffer> activations,
                               ffi::Result<ffi::AnyBuffer> slots,
                               ffi::Result<ffi::AnyBuffer> seen_version,
                               ffi::Result<ffi::AnyBuffer> counts,
                               ffi::Dictionary attributes) {
  Arguments arguments;
  LookupOutput out{};
  ONEEMB_RETURN_IF_ERROR(DecodeBatch(args, attributes, run, 0, &arguments));
  ONEEMB_RETURN_IF_ERROR(DecodeLookup(
      {arguments.buffers[4], *activations, *slots, *seen_version, *counts},
      &arguments.call, &out));
  FfiParallel parallel(pool);
  return ToFfi("lookup", LookupCached(&parallel, arguments.table(),
                                      arguments.call.ids, out));
}

ffi::Error ReadCachedRowsHandler(ffi::ThreadPool pool, ffi::RunId run,
                                 ffi::RemainingArgs args,
                                 ffi::Result<ffi::AnyBuffer> rows,
                                 ffi::Result<ffi::AnyBuffer> slots,
                                 ffi::Dictionary attributes) {
  Arguments arguments;
  ONEEMB_RETURN_IF_ERROR(DecodeBatch(args, attributes, run, 0, &arguments));
  ONEEMB_RETURN_IF_ERROR(CheckRowsRead(arguments.call, *rows, *slots));
  FfiParallel parallel(pool);
  return ToFfi("read_rows",
               ReadCachedRows(&parallel, arguments.table(), arguments.call.ids,
                              rows->typed_data<uint32_t>(),
                              slots->typed_data<int32_t>()));
}

ffi::Error WriteCachedRowsHandler(ffi::ThreadPool pool, ffi::RunId run,
                                  ffi::RemainingArgs args,
                                  ffi::RemainingRets results,
                                  ffi::Dictionary attributes) {
  Arguments arguments;
  ONEEMB_RETURN_IF_ERROR(DecodeBatch(args, attributes, run, 1, &arguments));
  const TableCall& call = arguments.call;
  const ffi::AnyBuffer& values = arguments.buffers.back();
  ONEEMB_RETURN_IF_ERROR(CheckBuffer("values", values, ffi::U32,
                                     {call.ids.size, call.table.row_words}));
  ONEEMB_RETURN_IF_ERROR(CheckCachedInPlace("write_rows", arguments, results));
  ONEEMB_RETURN_IF_ERROR(CheckRoom(call));
  FfiParallel parallel(pool);
  return ToFfi("write_rows",
               WriteCachedRows(&parallel, arguments.table(), call.ids,
                               values.typed_data<uint32_t>()));
}

ffi::Error WriteDownHandler(ffi::ThreadPool pool, ffi::RunId run,
                            ffi::RemainingArgs args,
                            ffi::Result<ffi::AnyBuffer> written,
                            ffi::Dictionary attributes) {
  Arguments arguments;
  ONEEMB_RETURN_IF_ERROR(Decode(args, attributes, run, &arguments));
  ONEEMB_RETURN_IF_ERROR(CheckBuffer("written", *written, ffi::PRED, {1}));
  auto* const done = written->typed_data<bool>();
  *done = false;
  if (arguments.store == nullptr) return ffi::Error::Success();
  FfiParallel parallel(pool);
  *done = WriteDown(&parallel, arguments.table());
  return ffi::Error::Success();
}

ffi::Error FlushHandler(ffi::ThreadPool pool, ffi::RunId run,
                        ffi::RemainingArgs args,
                        ffi::Result<ffi::AnyBuffer> residency,
                        ffi::Result<ffi::AnyBuffer> generation,
                        ffi::Dictionary attributes) {
  Arguments arguments;
  ONEEMB_RETURN_IF_ERROR(Decode(args, attributes, run, &arguments));
  ONEEMB_RETURN_IF_ERROR(CheckBuffer("residency", *residency, ffi::U32,
                                     {arguments.call.table.capacity, 2}));
  ONEEMB_RETURN_IF_ERROR(CheckBuffer("generation", *generation, ffi::U32, {1}));
  const CachedTable table = arguments.table();
  auto* const marks = static_cast<SlotResidency*>(residency->untyped_data());
  auto* const next = generation->typed_data<uint32_t>();
  AdviseHugePages(marks, static_cast<int64_t>(residency->size_bytes()));
  std::memcpy(marks, table.view.residency, residency->size_bytes());
  *next = *table.generation;
  if (table.store == nullptr) return ffi::Error::Success();
  FfiParallel parallel(pool);
  Flush(&parallel, table, marks, next);
  return ffi::Error::Success();
}

}  // namespace

ONEEMB_DEFINE_HANDLER(OneembStage, StageHandler);
ONEEMB_DEFINE_HANDLER(OneembPrefetch, PrefetchHandler);
ONEEMB_DEFINE_HANDLER(OneembUpdateCached, UpdateCachedHandler);
ONEEMB_DEFINE_HANDLER(OneembLookupCached, LookupCachedHandler);
ONEEMB_DEFINE_HANDLER(OneembReadCachedRows, ReadCachedRowsHandler);
ONEEMB_DEFINE_HANDLER(OneembWriteCachedRows, WriteCachedRowsHandler);
ONEEMB_DEFINE_HANDLER(OneembWriteDown, WriteDownHandler);
ONEEMB_DEFINE_HANDLER(OneembFlush, FlushHandler);

}  // namespace oneemb
