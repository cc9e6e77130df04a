// The handlers of cached tables. All of them take the arrays of a table first,
// in one order: index, rows, clock, counters, layout_version, generation,
// residency, store_nonce.
#include <cstring>
#include <memory>
#include <new>
#include <string>
#include <string_view>
#include <vector>

#include "cpu/ffi_util.h"
#include "cpu/lookup_ffi.h"
#include "cpu/memory.h"
#include "cpu/update_ffi.h"
#include "tier/cached_table.h"
#include "tier/handlers.h"

namespace oneemb {

namespace ffi = xla::ffi;

namespace {

constexpr size_t kTableBuffers = 8;
constexpr size_t kWritten = 7;  // all but the nonce

// The arrays of a cached table as they came, and what they mean.
struct Arguments {
  RulesHolder holder;
  std::vector<ffi::AnyBuffer> buffers;
  std::shared_ptr<TableStore> store;
  TableView view{};
  uint64_t nonce = 0;
  uint32_t* generation = nullptr;
  int64_t run = 0;

  CachedTable table() const {
    return {view, holder.rules, store, nonce, generation, run};
  }
};

ffi::Error FindTheStore(const ffi::Dictionary& attributes,
                        std::shared_ptr<TableStore>* store) {
  const auto name = attributes.get<std::string_view>("store");
  if (name.has_error()) {
    return ffi::Error::InvalidArgument("attribute store: " +
                                       name.error().message());
  }
  *store = StoreOf(std::string(*name));
  return ffi::Error::Success();
}

ffi::Error Decode(const ffi::RemainingArgs& args,
                  const ffi::Dictionary& attributes, ffi::RunId run,
                  Arguments* out) {
  for (size_t i = 0; i < args.size(); ++i) {
    ffi::ErrorOr<ffi::AnyBuffer> buffer = args.get<ffi::AnyBuffer>(i);
    if (buffer.has_error()) return buffer.error();
    out->buffers.push_back(*buffer);
  }
  if (out->buffers.size() < kTableBuffers) {
    return ffi::Error::InvalidArgument("eight arrays of a table are needed");
  }
  const std::vector<ffi::AnyBuffer>& b = out->buffers;
  ONEEMB_RETURN_IF_ERROR(DecodeRules(attributes, &out->holder));
  ONEEMB_RETURN_IF_ERROR(FindTheStore(attributes, &out->store));
  ONEEMB_RETURN_IF_ERROR(
      DecodeReadTable(out->holder.rules, b[0], b[1], &out->view));
  ONEEMB_RETURN_IF_ERROR(DecodeTableState(b[2], b[3], b[4], &out->view));
  ONEEMB_RETURN_IF_ERROR(CheckBuffer("generation", b[5], ffi::U32, {1}));
  ONEEMB_RETURN_IF_ERROR(
      CheckBuffer("residency", b[6], ffi::U32, {out->view.capacity, 2}));
  ONEEMB_RETURN_IF_ERROR(CheckBuffer("store_nonce", b[7], ffi::U32, {1, 2}));
  out->generation = static_cast<uint32_t*>(b[5].untyped_data());
  out->view.residency = static_cast<SlotResidency*>(b[6].untyped_data());
  std::memcpy(&out->nonce, b[7].untyped_data(), sizeof(out->nonce));
  out->run = run.run_id;
  return ffi::Error::Success();
}

// Fails unless the table's arrays are the first results, in place.
ffi::Error CheckTableInPlace(const char* call, const Arguments& arguments,
                             const ffi::RemainingRets& results) {
  std::vector<const ffi::AnyBuffer*> in_place;
  in_place.reserve(kWritten);
  for (size_t i = 0; i < kWritten; ++i) {
    in_place.push_back(&arguments.buffers[i]);
  }
  return CheckInPlace(call, in_place, results);
}

// The ids of a batch: the buffers behind the table's.
ffi::Error DecodeBatchIds(const Arguments& arguments, size_t more,
                          IdsView* ids) {
  if (arguments.buffers.size() != kTableBuffers + 2 + more) {
    return ffi::Error::InvalidArgument("wrong number of arguments");
  }
  return DecodeIds(arguments.buffers[kTableBuffers],
                   arguments.buffers[kTableBuffers + 1], ids);
}

// Runs `body`; a lack of memory becomes an error of the call.
template <class Body>
ffi::Error Run(const char* call, const Body& body) {
  bool memory = false;
  try {
    memory = body();
  } catch (const std::bad_alloc&) {
    memory = false;
  }
  if (memory) return ffi::Error::Success();
  return ffi::Error(ffi::ErrorCode::kResourceExhausted,
                    std::string(call) + ": no memory for scratch space");
}

ffi::Error StageHandler(ffi::ThreadPool pool, ffi::RunId run,
                        ffi::RemainingArgs args, ffi::RemainingRets results,
                        ffi::Dictionary attributes) {
  Arguments arguments;
  IdsView ids{};
  ONEEMB_RETURN_IF_ERROR(Decode(args, attributes, run, &arguments));
  ONEEMB_RETURN_IF_ERROR(DecodeBatchIds(arguments, 0, &ids));
  ONEEMB_RETURN_IF_ERROR(CheckTableInPlace("stage", arguments, results));
  if (ids.size > arguments.view.capacity) {
    return ffi::Error::InvalidArgument("ids: more than the cache has slots");
  }
  FfiParallel parallel(pool);
  return Run("stage", [&] { return Stage(&parallel, arguments.table(), ids); });
}

ffi::Error PrefetchHandler(ffi::ThreadPool pool, ffi::RunId run,
                           ffi::RemainingArgs args,
                           ffi::Result<ffi::AnyBuffer> generation,
                           ffi::Dictionary attributes) {
  Arguments arguments;
  IdsView ids{};
  ONEEMB_RETURN_IF_ERROR(Decode(args, attributes, run, &arguments));
  ONEEMB_RETURN_IF_ERROR(DecodeBatchIds(arguments, 0, &ids));
  if (generation->untyped_data() != arguments.generation) {
    return ffi::Error::Internal("prefetch: the table is not used in place");
  }
  FfiParallel parallel(pool);
  return Run("prefetch",
             [&] { return Prefetch(&parallel, arguments.table(), ids); });
}

ffi::Error UpdateCachedHandler(ffi::ThreadPool pool, ffi::RunId run,
                               ffi::RemainingArgs args,
                               ffi::RemainingRets results,
                               ffi::Dictionary attributes) {
  // Behind the table: step, learning_rate, grad_scale, apply, and the lookups.
  constexpr size_t kScalars = 4;
  Arguments arguments;
  UpdateArgs update{};
  ONEEMB_RETURN_IF_ERROR(Decode(args, attributes, run, &arguments));
  const std::vector<ffi::AnyBuffer>& b = arguments.buffers;
  if (b.size() < kTableBuffers + kScalars) {
    return ffi::Error::InvalidArgument("wrong number of arguments");
  }
  const size_t first = kTableBuffers;
  ONEEMB_RETURN_IF_ERROR(DecodeUpdateArgs(
      {b[first], b[5], b[first + 1], b[first + 2], b[first + 3]}, args,
      first + kScalars, attributes, arguments.holder.rules.embedding_dim,
      &update));
  ONEEMB_RETURN_IF_ERROR(CheckTableInPlace("update", arguments, results));
  ffi::ErrorOr<ffi::Result<ffi::AnyBuffer>> step =
      results.get<ffi::AnyBuffer>(kWritten);
  if (step.has_error()) return step.error();
  if ((*step)->untyped_data() != update.step) {
    return ffi::Error::Internal("update: the step is not updated in place");
  }
  FfiParallel parallel(pool);
  return Run("update", [&] {
    return UpdateCached(&parallel, arguments.table(), update);
  });
}

ffi::Error LookupCachedHandler(ffi::ThreadPool pool, ffi::RunId run,
                               ffi::RemainingArgs args,
                               ffi::Result<ffi::AnyBuffer> activations,
                               ffi::Result<ffi::AnyBuffer> slots,
                               ffi::Result<ffi::AnyBuffer> seen_version,
                               ffi::Result<ffi::AnyBuffer> counts,
                               ffi::Dictionary attributes) {
  Arguments arguments;
  IdsView ids{};
  LookupOutput out{};
  ONEEMB_RETURN_IF_ERROR(Decode(args, attributes, run, &arguments));
  ONEEMB_RETURN_IF_ERROR(DecodeBatchIds(arguments, 0, &ids));
  ONEEMB_RETURN_IF_ERROR(DecodeLookupOutput(
      ids, arguments.holder.rules.embedding_dim, arguments.buffers[4],
      {*activations, *slots, *seen_version, *counts}, &out));
  FfiParallel parallel(pool);
  return Run("lookup", [&] {
    return LookupCached(&parallel, arguments.table(), ids, out);
  });
}

ffi::Error ReadCachedRowsHandler(ffi::ThreadPool pool, ffi::RunId run,
                                 ffi::RemainingArgs args,
                                 ffi::Result<ffi::AnyBuffer> rows,
                                 ffi::Result<ffi::AnyBuffer> slots,
                                 ffi::Dictionary attributes) {
  Arguments arguments;
  IdsView ids{};
  ONEEMB_RETURN_IF_ERROR(Decode(args, attributes, run, &arguments));
  ONEEMB_RETURN_IF_ERROR(DecodeBatchIds(arguments, 0, &ids));
  ONEEMB_RETURN_IF_ERROR(CheckBuffer("rows", *rows, ffi::U32,
                                     {ids.size, arguments.view.row_words}));
  ONEEMB_RETURN_IF_ERROR(CheckBuffer("slots", *slots, ffi::S32, {ids.size}));
  FfiParallel parallel(pool);
  return Run("read_rows", [&] {
    return ReadCachedRows(&parallel, arguments.table(), ids,
                          static_cast<uint32_t*>(rows->untyped_data()),
                          static_cast<int32_t*>(slots->untyped_data()));
  });
}

ffi::Error WriteCachedRowsHandler(ffi::ThreadPool pool, ffi::RunId run,
                                  ffi::RemainingArgs args,
                                  ffi::RemainingRets results,
                                  ffi::Dictionary attributes) {
  Arguments arguments;
  IdsView ids{};
  ONEEMB_RETURN_IF_ERROR(Decode(args, attributes, run, &arguments));
  ONEEMB_RETURN_IF_ERROR(DecodeBatchIds(arguments, 1, &ids));
  const ffi::AnyBuffer& values = arguments.buffers.back();
  ONEEMB_RETURN_IF_ERROR(CheckBuffer("values", values, ffi::U32,
                                     {ids.size, arguments.view.row_words}));
  ONEEMB_RETURN_IF_ERROR(CheckTableInPlace("write_rows", arguments, results));
  if (ids.size > arguments.view.capacity) {
    return ffi::Error::InvalidArgument("ids: more than the cache has slots");
  }
  FfiParallel parallel(pool);
  return Run("write_rows", [&] {
    return WriteCachedRows(&parallel, arguments.table(), ids,
                           static_cast<const uint32_t*>(values.untyped_data()));
  });
}

ffi::Error WriteDownHandler(ffi::RunId run, ffi::RemainingArgs args,
                            ffi::Result<ffi::AnyBuffer> written,
                            ffi::Dictionary attributes) {
  Arguments arguments;
  ONEEMB_RETURN_IF_ERROR(Decode(args, attributes, run, &arguments));
  ONEEMB_RETURN_IF_ERROR(CheckBuffer("written", *written, ffi::PRED, {1}));
  auto* const done = static_cast<bool*>(written->untyped_data());
  *done = false;
  if (arguments.store == nullptr) return ffi::Error::Success();
  return Run("write_down", [&] {
    *done = WriteDown(arguments.table());
    return true;
  });
}

ffi::Error FlushHandler(ffi::RunId run, ffi::RemainingArgs args,
                        ffi::Result<ffi::AnyBuffer> residency,
                        ffi::Result<ffi::AnyBuffer> generation,
                        ffi::Dictionary attributes) {
  Arguments arguments;
  ONEEMB_RETURN_IF_ERROR(Decode(args, attributes, run, &arguments));
  ONEEMB_RETURN_IF_ERROR(CheckBuffer("residency", *residency, ffi::U32,
                                     {arguments.view.capacity, 2}));
  ONEEMB_RETURN_IF_ERROR(CheckBuffer("generation", *generation, ffi::U32, {1}));
  const CachedTable table = arguments.table();
  auto* const marks = static_cast<SlotResidency*>(residency->untyped_data());
  auto* const next = static_cast<uint32_t*>(generation->untyped_data());
  AdviseHugePages(marks, static_cast<int64_t>(residency->size_bytes()));
  std::memcpy(marks, table.view.residency, residency->size_bytes());
  *next = *table.generation;
  if (table.store == nullptr) return ffi::Error::Success();
  return Run("flush", [&] {
    Flush(table, marks, next);
    return true;
  });
}

}  // namespace

// A handler that writes the table.
#define ONEEMB_CACHED_HANDLER(symbol, handler)              \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(symbol, handler,            \
                                ffi::Ffi::Bind()            \
                                    .Ctx<ffi::ThreadPool>() \
                                    .Ctx<ffi::RunId>()      \
                                    .RemainingArgs()        \
                                    .RemainingRets()        \
                                    .Attrs())

ONEEMB_CACHED_HANDLER(OneembStage, StageHandler);
ONEEMB_CACHED_HANDLER(OneembUpdateCached, UpdateCachedHandler);
ONEEMB_CACHED_HANDLER(OneembWriteCachedRows, WriteCachedRowsHandler);

XLA_FFI_DEFINE_HANDLER_SYMBOL(OneembPrefetch, PrefetchHandler,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Ctx<ffi::RunId>()
                                  .RemainingArgs()        // table, ids
                                  .Ret<ffi::AnyBuffer>()  // generation
                                  .Attrs());

XLA_FFI_DEFINE_HANDLER_SYMBOL(OneembLookupCached, LookupCachedHandler,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Ctx<ffi::RunId>()
                                  .RemainingArgs()        // table, ids
                                  .Ret<ffi::AnyBuffer>()  // activations
                                  .Ret<ffi::AnyBuffer>()  // slots
                                  .Ret<ffi::AnyBuffer>()  // layout_version
                                  .Ret<ffi::AnyBuffer>()  // counts
                                  .Attrs());

XLA_FFI_DEFINE_HANDLER_SYMBOL(OneembReadCachedRows, ReadCachedRowsHandler,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Ctx<ffi::RunId>()
                                  .RemainingArgs()        // table, ids
                                  .Ret<ffi::AnyBuffer>()  // whole rows
                                  .Ret<ffi::AnyBuffer>()  // slots
                                  .Attrs());

XLA_FFI_DEFINE_HANDLER_SYMBOL(OneembWriteDown, WriteDownHandler,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::RunId>()
                                  .RemainingArgs()        // table
                                  .Ret<ffi::AnyBuffer>()  // whether it is done
                                  .Attrs());

XLA_FFI_DEFINE_HANDLER_SYMBOL(OneembFlush, FlushHandler,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::RunId>()
                                  .RemainingArgs()        // table
                                  .Ret<ffi::AnyBuffer>()  // residency
                                  .Ret<ffi::AnyBuffer>()  // generation
                                  .Attrs());

}  // namespace oneemb
