#include "core/counters.h"
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
  RulesHolder holder;
  TableView table{};
  IdsView view{};
  LookupOutput out{};
  ONEEMB_RETURN_IF_ERROR(DecodeRules(attributes, &holder));
  ONEEMB_RETURN_IF_ERROR(DecodeReadTable(holder.rules, index, rows, &table));
  ONEEMB_RETURN_IF_ERROR(DecodeIds(ids, table_ids, &view));
  ONEEMB_RETURN_IF_ERROR(CheckPositions(view.size));
  ONEEMB_RETURN_IF_ERROR(
      CheckBuffer("layout_version", layout_version, ffi::U32, {1, 2}));
  ONEEMB_RETURN_IF_ERROR(
      CheckBuffer("layout_version", *seen_version, ffi::U32, {2}));
  ONEEMB_RETURN_IF_ERROR(DecodeFloatType("acts", *activations, &out.type));
  ONEEMB_RETURN_IF_ERROR(CheckBuffer("acts", *activations,
                                     activations->element_type(),
                                     {view.size, holder.rules.embedding_dim}));
  ONEEMB_RETURN_IF_ERROR(CheckBuffer("slots", *slots, ffi::S32, {view.size}));
  ONEEMB_RETURN_IF_ERROR(
      CheckBuffer("counts", *counts, ffi::U32, {kNumLookupCounts}));
  ONEEMB_RETURN_IF_ERROR(
      CheckWorkspace(*workspace, LookupSpace(holder.rules, view.size)));
  table.layout_version = static_cast<uint64_t*>(layout_version.untyped_data());
  out.activations = activations->untyped_data();
  out.slots = static_cast<int32_t*>(slots->untyped_data());
  out.counts = static_cast<uint32_t*>(counts->untyped_data());
  out.seen_version = static_cast<uint64_t*>(seen_version->untyped_data());
  return ToFfi("lookup", Lookup(stream, table, holder.rules, view, out,
                                workspace->untyped_data()));
}

ffi::Error ReadRowsHandler(cudaStream_t stream, ffi::AnyBuffer index,
                           ffi::AnyBuffer rows, ffi::AnyBuffer ids,
                           ffi::AnyBuffer table_ids,
                           ffi::Result<ffi::AnyBuffer> out,
                           ffi::Result<ffi::AnyBuffer> slots,
                           ffi::Result<ffi::AnyBuffer> workspace,
                           ffi::Dictionary attributes) {
  RulesHolder holder;
  TableView table{};
  IdsView view{};
  ONEEMB_RETURN_IF_ERROR(DecodeRules(attributes, &holder));
  ONEEMB_RETURN_IF_ERROR(DecodeReadTable(holder.rules, index, rows, &table));
  ONEEMB_RETURN_IF_ERROR(DecodeIds(ids, table_ids, &view));
  ONEEMB_RETURN_IF_ERROR(CheckPositions(view.size));
  ONEEMB_RETURN_IF_ERROR(
      CheckBuffer("out", *out, ffi::U32, {view.size, table.row_words}));
  ONEEMB_RETURN_IF_ERROR(CheckBuffer("slots", *slots, ffi::S32, {view.size}));
  ONEEMB_RETURN_IF_ERROR(
      CheckWorkspace(*workspace, LookupSpace(holder.rules, view.size)));
  return ToFfi("read_rows",
               ReadRows(stream, table, holder.rules, view,
                        static_cast<uint32_t*>(out->untyped_data()),
                        static_cast<int32_t*>(slots->untyped_data()),
                        workspace->untyped_data()));
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(OneembCudaLookup, LookupHandler,
                              ffi::Ffi::Bind()
                                  .Ctx<CudaStream>()
                                  .Arg<ffi::AnyBuffer>()  // index
                                  .Arg<ffi::AnyBuffer>()  // rows
                                  .Arg<ffi::AnyBuffer>()  // layout_version
                                  .Arg<ffi::AnyBuffer>()  // ids
                                  .Arg<ffi::AnyBuffer>()  // table_ids
                                  .Ret<ffi::AnyBuffer>()  // activations
                                  .Ret<ffi::AnyBuffer>()  // slots
                                  .Ret<ffi::AnyBuffer>()  // layout_version
                                  .Ret<ffi::AnyBuffer>()  // counts
                                  .Ret<ffi::AnyBuffer>()  // workspace
                                  .Attrs(),
                              {ffi::Traits::kCmdBufferCompatible});

XLA_FFI_DEFINE_HANDLER_SYMBOL(OneembCudaReadRows, ReadRowsHandler,
                              ffi::Ffi::Bind()
                                  .Ctx<CudaStream>()
                                  .Arg<ffi::AnyBuffer>()  // index
                                  .Arg<ffi::AnyBuffer>()  // rows
                                  .Arg<ffi::AnyBuffer>()  // ids
                                  .Arg<ffi::AnyBuffer>()  // table_ids
                                  .Ret<ffi::AnyBuffer>()  // whole rows
                                  .Ret<ffi::AnyBuffer>()  // slots
                                  .Ret<ffi::AnyBuffer>()  // workspace
                                  .Attrs(),
                              {ffi::Traits::kCmdBufferCompatible});

}  // namespace oneemb::gpu
