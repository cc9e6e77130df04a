#include "cuda/ffi_util.h"
#include "cuda/handlers.h"
#include "cuda/lookup.h"

namespace oneemb::gpu {

namespace ffi = xla::ffi;

namespace {

ffi::Error LookupHandler(cudaStream_t stream, ffi::AnyBuffer index,
                         ffi::AnyBuffer rows, ffi::AnyBuffer layout_version,
                         ffi::AnyBuffer ids, ffi::AnyBuffer table_ids,
                         ffi::Result<ffi::AnyBuffer> activations,
                         ffi::Result<ffi::AnyBuffer> slots,
                         ffi::Result<ffi::AnyBuffer> seen_version,
                         ffi::Result<ffi::AnyBuffer> counts,
                         ffi::Result<ffi::AnyBuffer> workspace,
                         ffi::Dictionary attributes) {
  TableCall call;
  LookupOutput out{};
  ONEEMB_RETURN_IF_ERROR(
      DecodeRead(attributes, index, rows, ids, table_ids, &call));
  ONEEMB_RETURN_IF_ERROR(CheckPositions(call.ids.size));
  ONEEMB_RETURN_IF_ERROR(DecodeLookup(
      {layout_version, *activations, *slots, *seen_version, *counts}, &call,
      &out));
  ONEEMB_RETURN_IF_ERROR(
      CheckWorkspace(*workspace, LookupSpace(call.rules, call.ids.size)));
  return ToFfi("lookup", Lookup(stream, call.table, call.rules, call.ids, out,
                                workspace->untyped_data()));
}

ffi::Error ReadRowsHandler(cudaStream_t stream, ffi::AnyBuffer index,
                           ffi::AnyBuffer rows, ffi::AnyBuffer ids,
                           ffi::AnyBuffer table_ids,
                           ffi::Result<ffi::AnyBuffer> out,
                           ffi::Result<ffi::AnyBuffer> slots,
                           ffi::Result<ffi::AnyBuffer> workspace,
                           ffi::Dictionary attributes) {
  TableCall call;
  ONEEMB_RETURN_IF_ERROR(
      DecodeRead(attributes, index, rows, ids, table_ids, &call));
  ONEEMB_RETURN_IF_ERROR(CheckPositions(call.ids.size));
  ONEEMB_RETURN_IF_ERROR(CheckRowsRead(call, *out, *slots));
  ONEEMB_RETURN_IF_ERROR(
      CheckWorkspace(*workspace, LookupSpace(call.rules, call.ids.size)));
  return ToFfi("read_rows", ReadRows(stream, call.table, call.rules, call.ids,
                                     out->typed_data<uint32_t>(),
                                     slots->typed_data<int32_t>(),
                                     workspace->untyped_data()));
}

}  // namespace

ONEEMB_DEFINE_CUDA_HANDLER(OneembCudaLookup, LookupHandler);
ONEEMB_DEFINE_CUDA_HANDLER(OneembCudaReadRows, ReadRowsHandler);

}  // namespace oneemb::gpu
