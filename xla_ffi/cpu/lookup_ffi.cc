#include "cpu/ffi_util.h"
#include "cpu/handlers.h"
#include "cpu/lookup.h"
#include "cpu/table_ops.h"

namespace oneemb {

namespace ffi = xla::ffi;

namespace {

ffi::Error LookupHandler(ffi::ThreadPool pool, ffi::AnyBuffer index,
                         ffi::AnyBuffer rows, ffi::AnyBuffer layout_version,
                         ffi::AnyBuffer ids, ffi::AnyBuffer table_ids,
                         ffi::Result<ffi::AnyBuffer> activations,
                         ffi::Result<ffi::AnyBuffer> slots,
                         ffi::Result<ffi::AnyBuffer> seen_version,
                         ffi::Result<ffi::AnyBuffer> counts,
                         ffi::Dictionary attributes) {
  TableCall call;
  LookupOutput out{};
  ONEEMB_RETURN_IF_ERROR(
      DecodeRead(attributes, index, rows, ids, table_ids, &call));
  ONEEMB_RETURN_IF_ERROR(DecodeLookup(
      {layout_version, *activations, *slots, *seen_version, *counts}, &call,
      &out));
  FfiParallel parallel(pool);
  return ToFfi("lookup",
               Lookup(&parallel, call.table, call.rules, call.ids, out));
}

ffi::Error ReadRowsHandler(ffi::ThreadPool pool, ffi::AnyBuffer index,
                           ffi::AnyBuffer rows, ffi::AnyBuffer ids,
                           ffi::AnyBuffer table_ids,
                           ffi::Result<ffi::AnyBuffer> out,
                           ffi::Result<ffi::AnyBuffer> slots,
                           ffi::Dictionary attributes) {
  TableCall call;
  ONEEMB_RETURN_IF_ERROR(
      DecodeRead(attributes, index, rows, ids, table_ids, &call));
  ONEEMB_RETURN_IF_ERROR(CheckRowsRead(call, *out, *slots));
  FfiParallel parallel(pool);
  ReadRows(&parallel, call.table, call.rules, call.ids,
           out->typed_data<uint32_t>(), slots->typed_data<int32_t>());
  return ffi::Error::Success();
}

}  // namespace

ONEEMB_DEFINE_HANDLER(OneembLookup, LookupHandler);
ONEEMB_DEFINE_HANDLER(OneembReadRows, ReadRowsHandler);

}  // namespace oneemb
