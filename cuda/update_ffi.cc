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
  TableCall call;
  UpdateOperands operands{};
  void* workspace = nullptr;
  ONEEMB_RETURN_IF_ERROR(DecodeTable(
      attributes, {index, rows, clock, counters, layout_version}, &call));
  ONEEMB_RETURN_IF_ERROR(DecodeUpdate(
      attributes, {step, generation, learning_rate, grad_scale, apply}, lookups,
      0, call.rules.embedding_dim, &operands.batches, &operands.gradient_type));
  const int64_t n = NumPositions(operands.batches);
  ONEEMB_RETURN_IF_ERROR(CheckPositions(n));
  ONEEMB_RETURN_IF_ERROR(CheckInPlace(
      "update",
      {&index, &rows, &clock, &counters, &step, &layout_version, &generation},
      results));
  ONEEMB_RETURN_IF_ERROR(DecodeWorkspace(
      results,
      UpdateSpace(call.rules, call.table.capacity, n,
                  static_cast<int64_t>(operands.batches.size())),
      &workspace));
  operands.learning_rate = learning_rate.typed_data<float>();
  operands.grad_scale = grad_scale.typed_data<float>();
  operands.apply = apply.typed_data<bool>();
  operands.step = step.typed_data<uint32_t>();
  operands.generation = generation.typed_data<uint32_t>();
  return ToFfi("update",
               Update(stream, call.table, call.rules, operands, workspace));
}

ffi::Error GlobalNormHandler(cudaStream_t stream, ffi::RemainingArgs lookups,
                             ffi::Result<ffi::BufferR0<ffi::F32>> norm,
                             ffi::Result<ffi::AnyBuffer> workspace,
                             ffi::Dictionary attributes) {
  TableCall call;
  std::vector<UpdateBatch> batches;
  FloatType type = FloatType::kFloat32;
  ONEEMB_RETURN_IF_ERROR(
      DecodeNorm(attributes, lookups, &call, &batches, &type));
  const int64_t n = NumPositions(batches);
  ONEEMB_RETURN_IF_ERROR(CheckPositions(n));
  ONEEMB_RETURN_IF_ERROR(CheckWorkspace(
      *workspace,
      NormSpace(call.rules, n, static_cast<int64_t>(batches.size()))));
  return ToFfi("global_norm",
               GlobalNorm(stream, call.rules, batches, type, norm->typed_data(),
                          workspace->untyped_data()));
}

}  // namespace

ONEEMB_DEFINE_CUDA_HANDLER(OneembCudaUpdate, UpdateHandler);
ONEEMB_DEFINE_CUDA_HANDLER(OneembCudaGlobalNorm, GlobalNormHandler);

}  // namespace oneemb::gpu
