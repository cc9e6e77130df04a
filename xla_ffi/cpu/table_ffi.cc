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
  TableCall call;
  ONEEMB_RETURN_IF_ERROR(DecodeRules(attributes, &call));
  ONEEMB_RETURN_IF_ERROR(
      DecodeNewTable(call.rules, *index, *rows, *clock, 0, &call.table));
  ONEEMB_RETURN_IF_ERROR(DecodeNewResidency(residency, &call.table));
  FfiParallel parallel(pool);
  CreateTable(&parallel, call.table);
  return ffi::Error::Success();
}

ffi::Error GrowHandler(ffi::ThreadPool pool, ffi::AnyBuffer index,
                       ffi::AnyBuffer rows, ffi::AnyBuffer clock,
                       ffi::AnyBuffer counters, ffi::AnyBuffer layout_version,
                       ffi::Result<ffi::AnyBuffer> new_index,
                       ffi::Result<ffi::AnyBuffer> new_rows,
                       ffi::Result<ffi::AnyBuffer> new_clock,
                       ffi::Dictionary attributes) {
  TableCall call;
  TableView to{};
  ONEEMB_RETURN_IF_ERROR(DecodeTable(
      attributes, {index, rows, clock, counters, layout_version}, &call));
  ONEEMB_RETURN_IF_ERROR(DecodeNewTable(call.rules, *new_index, *new_rows,
                                        *new_clock, call.table.capacity, &to));
  FfiParallel parallel(pool);
  return ToFfi("grow", GrowTable(&parallel, call.table, to));
}

ffi::Error WriteRowsHandler(ffi::AnyBuffer index, ffi::AnyBuffer rows,
                            ffi::AnyBuffer clock, ffi::AnyBuffer counters,
                            ffi::AnyBuffer layout_version, ffi::AnyBuffer step,
                            ffi::AnyBuffer ids, ffi::AnyBuffer table_ids,
                            ffi::AnyBuffer values, ffi::RemainingRets results,
                            ffi::Dictionary attributes) {
  TableCall call;
  ONEEMB_RETURN_IF_ERROR(DecodeWriteRows(
      attributes, {index, rows, clock, counters, layout_version},
      {step, ids, table_ids, values}, results, &call));
  WriteRows(call.table, call.rules, call.ids, values.typed_data<uint32_t>(),
            *step.typed_data<uint32_t>());
  return ffi::Error::Success();
}

}  // namespace

ONEEMB_DEFINE_HANDLER(OneembCreate, CreateHandler);
ONEEMB_DEFINE_HANDLER(OneembGrow, GrowHandler);
ONEEMB_DEFINE_HANDLER(OneembWriteRows, WriteRowsHandler);

}  // namespace oneemb
