#include "cpu/lookup_ffi.h"

#include <cstring>

#include "core/counters.h"
#include "cpu/ffi_util.h"
#include "cpu/handlers.h"

namespace oneemb {

namespace ffi = xla::ffi;

ffi::Error DecodeLookupOutput(const IdsView& ids, int64_t embedding_dim,
                              const ffi::AnyBuffer& layout_version,
                              const LookupResults& results, LookupOutput* out) {
  ONEEMB_RETURN_IF_ERROR(
      CheckBuffer("layout_version", layout_version, ffi::U32, {1, 2}));
  ONEEMB_RETURN_IF_ERROR(
      CheckBuffer("layout_version", results.seen_version, ffi::U32, {2}));
  ONEEMB_RETURN_IF_ERROR(
      DecodeFloatType("acts", results.activations, &out->type));
  ONEEMB_RETURN_IF_ERROR(CheckBuffer("acts", results.activations,
                                     results.activations.element_type(),
                                     {ids.size, embedding_dim}));
  ONEEMB_RETURN_IF_ERROR(
      CheckBuffer("slots", results.slots, ffi::S32, {ids.size}));
  ONEEMB_RETURN_IF_ERROR(
      CheckBuffer("counts", results.counts, ffi::U32, {kNumLookupCounts}));
  out->activations = results.activations.untyped_data();
  out->slots = static_cast<int32_t*>(results.slots.untyped_data());
  out->counts = static_cast<uint32_t*>(results.counts.untyped_data());
  std::memcpy(results.seen_version.untyped_data(),
              layout_version.untyped_data(), sizeof(uint64_t));
  return ffi::Error::Success();
}

namespace {

ffi::Error LookupHandler(ffi::ThreadPool pool, ffi::AnyBuffer index,
                         ffi::AnyBuffer rows, ffi::AnyBuffer layout_version,
                         ffi::AnyBuffer ids, ffi::AnyBuffer table_ids,
                         ffi::Result<ffi::AnyBuffer> activations,
                         ffi::Result<ffi::AnyBuffer> slots,
                         ffi::Result<ffi::AnyBuffer> seen_version,
                         ffi::Result<ffi::AnyBuffer> counts,
                         ffi::Dictionary attributes) {
  RulesHolder holder;
  TableView table{};
  IdsView view{};
  LookupOutput out{};
  ONEEMB_RETURN_IF_ERROR(DecodeRules(attributes, &holder));
  ONEEMB_RETURN_IF_ERROR(DecodeReadTable(holder.rules, index, rows, &table));
  ONEEMB_RETURN_IF_ERROR(DecodeIds(ids, table_ids, &view));
  ONEEMB_RETURN_IF_ERROR(
      DecodeLookupOutput(view, holder.rules.embedding_dim, layout_version,
                         {*activations, *slots, *seen_version, *counts}, &out));
  FfiParallel parallel(pool);
  if (!Lookup(&parallel, table, holder.rules, view, out)) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted,
                      "lookup: no memory for scratch space");
  }
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(OneembLookup, LookupHandler,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()  // index
                                  .Arg<ffi::AnyBuffer>()  // rows
                                  .Arg<ffi::AnyBuffer>()  // layout_version
                                  .Arg<ffi::AnyBuffer>()  // ids
                                  .Arg<ffi::AnyBuffer>()  // table_ids
                                  .Ret<ffi::AnyBuffer>()  // activations
                                  .Ret<ffi::AnyBuffer>()  // slots
                                  .Ret<ffi::AnyBuffer>()  // layout_version
                                  .Ret<ffi::AnyBuffer>()  // counts
                                  .Attrs());

}  // namespace oneemb
