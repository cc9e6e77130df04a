#include "cpu/ffi_util.h"
#include "cpu/handlers.h"
#include "cpu/table_ops.h"

namespace oneemb {

namespace ffi = xla::ffi;

namespace {

ffi::Error CreateHandler(ffi::ThreadPool pool,
                         ffi::Result<ffi::AnyBuffer> index,
                         ffi::Result<ffi::AnyBuffer> rows,
                         ffi::Result<ffi::AnyBuffer> clock,
                         ffi::RemainingRets residency,
                         ffi::Dictionary attributes) {
  RulesHolder holder;
  TableView table{};
  ONEEMB_RETURN_IF_ERROR(DecodeRules(attributes, &holder));
  ONEEMB_RETURN_IF_ERROR(DecodeReadTable(holder.rules, *index, *rows, &table));
  ONEEMB_RETURN_IF_ERROR(
      CheckBuffer("clock", *clock, ffi::U32, {table.capacity}));
  table.clock = static_cast<uint32_t*>(clock->untyped_data());
  if (residency.size() > 0) {
    ffi::ErrorOr<ffi::Result<ffi::AnyBuffer>> slots =
        residency.get<ffi::AnyBuffer>(0);
    if (slots.has_error()) return slots.error();
    ONEEMB_RETURN_IF_ERROR(
        CheckBuffer("residency", **slots, ffi::U32, {table.capacity, 2}));
    table.residency = static_cast<SlotResidency*>((*slots)->untyped_data());
  }
  FfiParallel parallel(pool);
  CreateTable(&parallel, table);
  return ffi::Error::Success();
}

ffi::Error GrowHandler(ffi::ThreadPool pool, ffi::AnyBuffer index,
                       ffi::AnyBuffer rows, ffi::AnyBuffer clock,
                       ffi::AnyBuffer counters, ffi::AnyBuffer layout_version,
                       ffi::Result<ffi::AnyBuffer> new_index,
                       ffi::Result<ffi::AnyBuffer> new_rows,
                       ffi::Result<ffi::AnyBuffer> new_clock,
                       ffi::Dictionary attributes) {
  RulesHolder holder;
  TableView from{};
  TableView to{};
  ONEEMB_RETURN_IF_ERROR(DecodeRules(attributes, &holder));
  ONEEMB_RETURN_IF_ERROR(DecodeReadTable(holder.rules, index, rows, &from));
  ONEEMB_RETURN_IF_ERROR(
      DecodeTableState(clock, counters, layout_version, &from));
  ONEEMB_RETURN_IF_ERROR(
      DecodeReadTable(holder.rules, *new_index, *new_rows, &to));
  ONEEMB_RETURN_IF_ERROR(
      CheckBuffer("clock", *new_clock, ffi::U32, {to.capacity}));
  if (to.capacity < from.capacity) {
    return ffi::Error::InvalidArgument("grow: the new table is smaller");
  }
  to.clock = static_cast<uint32_t*>(new_clock->untyped_data());
  FfiParallel parallel(pool);
  if (!GrowTable(&parallel, from, to)) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted,
                      "grow: no memory for scratch space");
  }
  return ffi::Error::Success();
}

ffi::Error ReadRowsHandler(ffi::ThreadPool pool, ffi::AnyBuffer index,
                           ffi::AnyBuffer rows, ffi::AnyBuffer ids,
                           ffi::AnyBuffer table_ids,
                           ffi::Result<ffi::AnyBuffer> out,
                           ffi::Result<ffi::AnyBuffer> slots,
                           ffi::Dictionary attributes) {
  RulesHolder holder;
  TableView table{};
  IdsView view{};
  ONEEMB_RETURN_IF_ERROR(DecodeRules(attributes, &holder));
  ONEEMB_RETURN_IF_ERROR(DecodeReadTable(holder.rules, index, rows, &table));
  ONEEMB_RETURN_IF_ERROR(DecodeIds(ids, table_ids, &view));
  ONEEMB_RETURN_IF_ERROR(
      CheckBuffer("out", *out, ffi::U32, {view.size, table.row_words}));
  ONEEMB_RETURN_IF_ERROR(CheckBuffer("slots", *slots, ffi::S32, {view.size}));
  FfiParallel parallel(pool);
  ReadRows(&parallel, table, holder.rules, view,
           static_cast<uint32_t*>(out->untyped_data()),
           static_cast<int32_t*>(slots->untyped_data()));
  return ffi::Error::Success();
}

ffi::Error WriteRowsHandler(ffi::AnyBuffer index, ffi::AnyBuffer rows,
                            ffi::AnyBuffer clock, ffi::AnyBuffer counters,
                            ffi::AnyBuffer layout_version, ffi::AnyBuffer step,
                            ffi::AnyBuffer ids, ffi::AnyBuffer table_ids,
                            ffi::AnyBuffer values, ffi::RemainingRets,
                            ffi::Dictionary attributes) {
  RulesHolder holder;
  TableView table{};
  IdsView view{};
  ONEEMB_RETURN_IF_ERROR(DecodeRules(attributes, &holder));
  ONEEMB_RETURN_IF_ERROR(DecodeReadTable(holder.rules, index, rows, &table));
  ONEEMB_RETURN_IF_ERROR(
      DecodeTableState(clock, counters, layout_version, &table));
  ONEEMB_RETURN_IF_ERROR(CheckBuffer("step", step, ffi::U32, {1}));
  ONEEMB_RETURN_IF_ERROR(DecodeIds(ids, table_ids, &view));
  ONEEMB_RETURN_IF_ERROR(
      CheckBuffer("values", values, ffi::U32, {view.size, table.row_words}));
  WriteRows(table, holder.rules, view,
            static_cast<const uint32_t*>(values.untyped_data()),
            *static_cast<const uint32_t*>(step.untyped_data()));
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(OneembCreate, CreateHandler,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Ret<ffi::AnyBuffer>()  // index
                                  .Ret<ffi::AnyBuffer>()  // rows
                                  .Ret<ffi::AnyBuffer>()  // clock
                                  .RemainingRets()  // residency, if cached
                                  .Attrs());

XLA_FFI_DEFINE_HANDLER_SYMBOL(OneembGrow, GrowHandler,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()  // index
                                  .Arg<ffi::AnyBuffer>()  // rows
                                  .Arg<ffi::AnyBuffer>()  // clock
                                  .Arg<ffi::AnyBuffer>()  // counters
                                  .Arg<ffi::AnyBuffer>()  // layout_version
                                  .Ret<ffi::AnyBuffer>()  // index
                                  .Ret<ffi::AnyBuffer>()  // rows
                                  .Ret<ffi::AnyBuffer>()  // clock
                                  .Attrs());

XLA_FFI_DEFINE_HANDLER_SYMBOL(OneembReadRows, ReadRowsHandler,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()  // index
                                  .Arg<ffi::AnyBuffer>()  // rows
                                  .Arg<ffi::AnyBuffer>()  // ids
                                  .Arg<ffi::AnyBuffer>()  // table_ids
                                  .Ret<ffi::AnyBuffer>()  // whole rows
                                  .Ret<ffi::AnyBuffer>()  // slots
                                  .Attrs());

XLA_FFI_DEFINE_HANDLER_SYMBOL(OneembWriteRows, WriteRowsHandler,
                              ffi::Ffi::Bind()
                                  .Arg<ffi::AnyBuffer>()  // index
                                  .Arg<ffi::AnyBuffer>()  // rows
                                  .Arg<ffi::AnyBuffer>()  // clock
                                  .Arg<ffi::AnyBuffer>()  // counters
                                  .Arg<ffi::AnyBuffer>()  // layout_version
                                  .Arg<ffi::AnyBuffer>()  // step
                                  .Arg<ffi::AnyBuffer>()  // ids
                                  .Arg<ffi::AnyBuffer>()  // table_ids
                                  .Arg<ffi::AnyBuffer>()  // values
                                  .RemainingRets()        // the table arrays
                                  .Attrs());

}  // namespace oneemb
