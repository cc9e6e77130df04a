#include <vector>

#include "cuda/ffi_util.h"
#include "cuda/handlers.h"
#include "cuda/norm.h"
#include "cuda/update.h"

namespace oneemb::gpu {

namespace ffi = xla::ffi;

namespace {

int64_t NumPositions(const std::vector<UpdateBatch>& batches) {
  int64_t n = 0;
  for (const UpdateBatch& batch : batches) n += batch.ids.size;
  return n;
}

ffi::Error UpdateHandler(cudaStream_t stream, ffi::AnyBuffer index,
                         ffi::AnyBuffer rows, ffi::AnyBuffer clock,
                         ffi::AnyBuffer counters, ffi::AnyBuffer step,
                         ffi::AnyBuffer layout_version,
                         ffi::AnyBuffer generation,
                         ffi::AnyBuffer learning_rate,
                         ffi::AnyBuffer grad_scale, ffi::AnyBuffer apply,
                         ffi::RemainingArgs lookups, ffi::RemainingRets results,
                         ffi::Dictionary attributes) {
  const std::vector<const ffi::AnyBuffer*> in_place = {
      &index, &rows, &clock, &counters, &step, &layout_version, &generation};
  RulesHolder holder;
  TableView table{};
  UpdateOperands operands{};
  ONEEMB_RETURN_IF_ERROR(DecodeRules(attributes, &holder));
  ONEEMB_RETURN_IF_ERROR(DecodeReadTable(holder.rules, index, rows, &table));
  ONEEMB_RETURN_IF_ERROR(
      DecodeTableState(clock, counters, layout_version, &table));
  ONEEMB_RETURN_IF_ERROR(CheckBuffer("step", step, ffi::U32, {1}));
  ONEEMB_RETURN_IF_ERROR(CheckBuffer("generation", generation, ffi::U32, {1}));
  ONEEMB_RETURN_IF_ERROR(
      CheckBuffer("learning_rate", learning_rate, ffi::F32, {}));
  ONEEMB_RETURN_IF_ERROR(CheckBuffer("grad_scale", grad_scale, ffi::F32, {}));
  ONEEMB_RETURN_IF_ERROR(CheckBuffer("apply", apply, ffi::PRED, {}));
  size_t num_lookups = 0;
  ONEEMB_RETURN_IF_ERROR(DecodeNumLookups(attributes, &num_lookups));
  ONEEMB_RETURN_IF_ERROR(
      DecodeBatches(lookups, num_lookups, holder.rules.embedding_dim,
                    &operands.batches, &operands.gradient_type));
  const int64_t n = NumPositions(operands.batches);
  ONEEMB_RETURN_IF_ERROR(CheckPositions(n));
  ONEEMB_RETURN_IF_ERROR(CheckInPlace("update", in_place, results));
  auto workspace = results.get<ffi::AnyBuffer>(in_place.size());
  if (workspace.has_error()) return workspace.error();
  ONEEMB_RETURN_IF_ERROR(CheckWorkspace(
      **workspace, UpdateSpace(holder.rules, table.capacity, n,
                               static_cast<int64_t>(operands.batches.size()))));
  operands.learning_rate =
      static_cast<const float*>(learning_rate.untyped_data());
  operands.grad_scale = static_cast<const float*>(grad_scale.untyped_data());
  operands.apply = static_cast<const bool*>(apply.untyped_data());
  operands.step = static_cast<uint32_t*>(step.untyped_data());
  operands.generation = static_cast<uint32_t*>(generation.untyped_data());
  return ToFfi("update", Update(stream, table, holder.rules, operands,
                                (*workspace)->untyped_data()));
}

ffi::Error GlobalNormHandler(cudaStream_t stream, ffi::RemainingArgs lookups,
                             ffi::Result<ffi::BufferR0<ffi::F32>> norm,
                             ffi::Result<ffi::AnyBuffer> workspace,
                             ffi::Dictionary attributes) {
  RulesHolder holder;
  std::vector<UpdateBatch> batches;
  FloatType type = FloatType::kFloat32;
  ONEEMB_RETURN_IF_ERROR(DecodeRules(attributes, &holder));
  const size_t num_lookups = lookups.size() / kBuffersPerBatch;
  ONEEMB_RETURN_IF_ERROR(DecodeBatches(
      lookups, num_lookups, holder.rules.embedding_dim, &batches, &type));
  const int64_t n = NumPositions(batches);
  ONEEMB_RETURN_IF_ERROR(CheckPositions(n));
  ONEEMB_RETURN_IF_ERROR(CheckWorkspace(
      *workspace,
      NormSpace(holder.rules, n, static_cast<int64_t>(batches.size()))));
  return ToFfi("global_norm",
               GlobalNorm(stream, holder.rules, batches, type,
                          norm->typed_data(), workspace->untyped_data()));
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(OneembCudaUpdate, UpdateHandler,
                              ffi::Ffi::Bind()
                                  .Ctx<CudaStream>()
                                  .Arg<ffi::AnyBuffer>()  // index
                                  .Arg<ffi::AnyBuffer>()  // rows
                                  .Arg<ffi::AnyBuffer>()  // clock
                                  .Arg<ffi::AnyBuffer>()  // counters
                                  .Arg<ffi::AnyBuffer>()  // step
                                  .Arg<ffi::AnyBuffer>()  // layout_version
                                  .Arg<ffi::AnyBuffer>()  // generation
                                  .Arg<ffi::AnyBuffer>()  // learning_rate
                                  .Arg<ffi::AnyBuffer>()  // grad_scale
                                  .Arg<ffi::AnyBuffer>()  // apply
                                  .RemainingArgs()  // lookups, other reads
                                  .RemainingRets()  // table arrays, workspace
                                  .Attrs(),
                              {ffi::Traits::kCmdBufferCompatible});

XLA_FFI_DEFINE_HANDLER_SYMBOL(OneembCudaGlobalNorm, GlobalNormHandler,
                              ffi::Ffi::Bind()
                                  .Ctx<CudaStream>()
                                  .RemainingArgs()  // lookups
                                  .Ret<ffi::BufferR0<ffi::F32>>()
                                  .Ret<ffi::AnyBuffer>()  // workspace
                                  .Attrs(),
                              {ffi::Traits::kCmdBufferCompatible});

}  // namespace oneemb::gpu
