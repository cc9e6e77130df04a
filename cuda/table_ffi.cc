#include "cuda/ffi_util.h"
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
                         ffi::Dictionary attributes) {
  RulesHolder holder;
  TableView table{};
  ONEEMB_RETURN_IF_ERROR(DecodeRules(attributes, &holder));
  ONEEMB_RETURN_IF_ERROR(DecodeReadTable(holder.rules, *index, *rows, &table));
  ONEEMB_RETURN_IF_ERROR(
      CheckBuffer("clock", *clock, ffi::U32, {table.capacity}));
  table.clock = static_cast<uint32_t*>(clock->untyped_data());
  return ToFfi("create", CreateTable(stream, table));
}

ffi::Error GrowHandler(cudaStream_t stream, ffi::AnyBuffer index,
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
  return ToFfi("grow", GrowTable(stream, from, to));
}

ffi::Error WriteRowsHandler(cudaStream_t stream, ffi::AnyBuffer index,
                            ffi::AnyBuffer rows, ffi::AnyBuffer clock,
                            ffi::AnyBuffer counters,
                            ffi::AnyBuffer layout_version, ffi::AnyBuffer step,
                            ffi::AnyBuffer ids, ffi::AnyBuffer table_ids,
                            ffi::AnyBuffer values, ffi::RemainingRets results,
                            ffi::Dictionary attributes) {
  const std::vector<const ffi::AnyBuffer*> in_place = {
      &index, &rows, &clock, &counters, &layout_version};
  RulesHolder holder;
  TableView table{};
  IdsView view{};
  ONEEMB_RETURN_IF_ERROR(DecodeRules(attributes, &holder));
  ONEEMB_RETURN_IF_ERROR(DecodeReadTable(holder.rules, index, rows, &table));
  ONEEMB_RETURN_IF_ERROR(
      DecodeTableState(clock, counters, layout_version, &table));
  ONEEMB_RETURN_IF_ERROR(CheckBuffer("step", step, ffi::U32, {1}));
  ONEEMB_RETURN_IF_ERROR(DecodeIds(ids, table_ids, &view));
  ONEEMB_RETURN_IF_ERROR(CheckPositions(view.size));
  ONEEMB_RETURN_IF_ERROR(
      CheckBuffer("values", values, ffi::U32, {view.size, table.row_words}));
  ONEEMB_RETURN_IF_ERROR(CheckInPlace("write_rows", in_place, results));
  auto workspace = results.get<ffi::AnyBuffer>(in_place.size());
  if (workspace.has_error()) return workspace.error();
  ONEEMB_RETURN_IF_ERROR(CheckWorkspace(
      **workspace, WriteRowsSpace(holder.rules, table.capacity, view.size)));
  return ToFfi("write_rows",
               WriteRows(stream, table, holder.rules, view,
                         static_cast<const uint32_t*>(values.untyped_data()),
                         static_cast<uint32_t*>(step.untyped_data()),
                         (*workspace)->untyped_data()));
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(OneembCudaCreate, CreateHandler,
                              ffi::Ffi::Bind()
                                  .Ctx<CudaStream>()
                                  .Ret<ffi::AnyBuffer>()  // index
                                  .Ret<ffi::AnyBuffer>()  // rows
                                  .Ret<ffi::AnyBuffer>()  // clock
                                  .Attrs(),
                              {ffi::Traits::kCmdBufferCompatible});

XLA_FFI_DEFINE_HANDLER_SYMBOL(OneembCudaGrow, GrowHandler,
                              ffi::Ffi::Bind()
                                  .Ctx<CudaStream>()
                                  .Arg<ffi::AnyBuffer>()  // index
                                  .Arg<ffi::AnyBuffer>()  // rows
                                  .Arg<ffi::AnyBuffer>()  // clock
                                  .Arg<ffi::AnyBuffer>()  // counters
                                  .Arg<ffi::AnyBuffer>()  // layout_version
                                  .Ret<ffi::AnyBuffer>()  // index
                                  .Ret<ffi::AnyBuffer>()  // rows
                                  .Ret<ffi::AnyBuffer>()  // clock
                                  .Attrs(),
                              {ffi::Traits::kCmdBufferCompatible});

XLA_FFI_DEFINE_HANDLER_SYMBOL(OneembCudaWriteRows, WriteRowsHandler,
                              ffi::Ffi::Bind()
                                  .Ctx<CudaStream>()
                                  .Arg<ffi::AnyBuffer>()  // index
                                  .Arg<ffi::AnyBuffer>()  // rows
                                  .Arg<ffi::AnyBuffer>()  // clock
                                  .Arg<ffi::AnyBuffer>()  // counters
                                  .Arg<ffi::AnyBuffer>()  // layout_version
                                  .Arg<ffi::AnyBuffer>()  // step
                                  .Arg<ffi::AnyBuffer>()  // ids
                                  .Arg<ffi::AnyBuffer>()  // table_ids
                                  .Arg<ffi::AnyBuffer>()  // values
                                  .RemainingRets()  // table arrays, workspace
                                  .Attrs(),
                              {ffi::Traits::kCmdBufferCompatible});

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
    default:
      return 0;
  }
}

}  // namespace oneemb::gpu
