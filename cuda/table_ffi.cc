#include "cuda/ffi_util.h"
#include "cuda/gpu_tier.h"
#include "cuda/handlers.h"
#include "cuda/lookup.h"
#include "cuda/norm.h"
#include "cuda/table_ops.h"
#include "cuda/update.h"

namespace oneemb::gpu {

namespace ffi = xla::ffi;

namespace {

ffi::Error CreateHandler(cudaStream_t stream, ffi::Result<ffi::AnyBuffer> index,
                         ffi::Result<ffi::AnyBuffer> rows,
                         ffi::Result<ffi::AnyBuffer> clock,
                         ffi::RemainingRets residency,
                         ffi::Dictionary attributes) {
  TableCall call;
  ONEEMB_RETURN_IF_ERROR(DecodeRules(attributes, &call));
  ONEEMB_RETURN_IF_ERROR(
      DecodeNewTable(call.rules, *index, *rows, *clock, 0, &call.table));
  ONEEMB_RETURN_IF_ERROR(DecodeNewResidency(residency, &call.table));
  return ToFfi("create", CreateTable(stream, call.table));
}

ffi::Error GrowHandler(cudaStream_t stream, ffi::AnyBuffer index,
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
  return ToFfi("grow", GrowTable(stream, call.table, to));
}

ffi::Error WriteRowsHandler(cudaStream_t stream, ffi::AnyBuffer index,
                            ffi::AnyBuffer rows, ffi::AnyBuffer clock,
                            ffi::AnyBuffer counters,
                            ffi::AnyBuffer layout_version, ffi::AnyBuffer step,
                            ffi::AnyBuffer ids, ffi::AnyBuffer table_ids,
                            ffi::AnyBuffer values, ffi::RemainingRets results,
                            ffi::Dictionary attributes) {
  TableCall call;
  void* workspace = nullptr;
  ONEEMB_RETURN_IF_ERROR(DecodeWriteRows(
      attributes, {index, rows, clock, counters, layout_version},
      {step, ids, table_ids, values}, results, &call));
  ONEEMB_RETURN_IF_ERROR(CheckPositions(call.ids.size));
  ONEEMB_RETURN_IF_ERROR(DecodeWorkspace(
      results, WriteRowsSpace(call.rules, call.table.capacity, call.ids.size),
      &workspace));
  return ToFfi("write_rows", WriteRows(stream, call.table, call.rules, call.ids,
                                       values.typed_data<uint32_t>(),
                                       step.typed_data<uint32_t>(), workspace));
}

}  // namespace

ONEEMB_DEFINE_CUDA_HANDLER(OneembCudaCreate, CreateHandler);
ONEEMB_DEFINE_CUDA_HANDLER(OneembCudaGrow, GrowHandler);
ONEEMB_DEFINE_CUDA_HANDLER(OneembCudaWriteRows, WriteRowsHandler);

int32_t OneembCudaApiMinor() { return XLA_FFI_API_MINOR; }

int64_t OneembCudaWorkspace(int32_t operation, int64_t embedding_dim,
                            int64_t num_columns, int64_t num_tables,
                            int32_t shared_keys, int64_t capacity, int64_t n,
                            int64_t num_lookups) {
  TableRules rules{};
  rules.embedding_dim = embedding_dim;
  rules.keys.num_tables = static_cast<int32_t>(num_tables);
  rules.keys.shared_keys = shared_keys != 0;
  rules.initializers.num_columns = static_cast<int32_t>(num_columns);
  switch (operation) {
    case 0:
      return LookupSpace(rules, n);
    case 1:
      return UpdateSpace(rules, capacity, n, num_lookups);
    case 2:
      return NormSpace(rules, n, num_lookups);
    case 3:
      return WriteRowsSpace(rules, capacity, n);
    case 4:
      return TierBytes(rules, capacity, n);
    case 5:
      return TierBytes(rules, capacity, n) + LookupSpace(rules, n);
    case 6:
      return TierBytes(rules, capacity, n) + kFlagBytes +
             WriteRowsSpace(rules, capacity, n);
    case 7:
      return TierBytes(rules, capacity, n) + kFlagBytes;
    default:
      return 0;
  }
}

}  // namespace oneemb::gpu
