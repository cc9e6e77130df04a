#include "cpu/update_ffi.h"

#include "cpu/ffi_util.h"
#include "cpu/handlers.h"
#include "cpu/norm.h"

namespace oneemb {

namespace ffi = xla::ffi;

ffi::Error DecodeUpdateArgs(const ffi::Dictionary& attributes,
                            const UpdateBuffers& buffers,
                            const ffi::RemainingArgs& lookups, size_t first,
                            int64_t embedding_dim, UpdateArgs* args) {
  ONEEMB_RETURN_IF_ERROR(DecodeUpdate(attributes, buffers, lookups, first,
                                      embedding_dim, &args->batches,
                                      &args->gradient_type));
  args->learning_rate = *buffers.learning_rate.typed_data<float>();
  args->grad_scale = *buffers.grad_scale.typed_data<float>();
  args->apply = *buffers.apply.typed_data<bool>();
  args->step = buffers.step.typed_data<uint32_t>();
  args->generation = buffers.generation.typed_data<uint32_t>();
  return ffi::Error::Success();
}

namespace {

ffi::Error UpdateHandler(ffi::ThreadPool pool, ffi::AnyBuffer index,
                         ffi::AnyBuffer rows, ffi::AnyBuffer clock,
                         ffi::AnyBuffer counters, ffi::AnyBuffer step,
                         ffi::AnyBuffer layout_version,
                         ffi::AnyBuffer generation,
                         ffi::AnyBuffer learning_rate,
                         ffi::AnyBuffer grad_scale, ffi::AnyBuffer apply,
                         ffi::RemainingArgs lookups, ffi::RemainingRets results,
                         ffi::Dictionary attributes) {
  TableCall call;
  UpdateArgs args{};
  ONEEMB_RETURN_IF_ERROR(DecodeTable(
      attributes, {index, rows, clock, counters, layout_version}, &call));
  ONEEMB_RETURN_IF_ERROR(DecodeUpdateArgs(
      attributes, {step, generation, learning_rate, grad_scale, apply}, lookups,
      0, call.rules.embedding_dim, &args));
  ONEEMB_RETURN_IF_ERROR(CheckInPlace(
      "update",
      {&index, &rows, &clock, &counters, &step, &layout_version, &generation},
      results));
  FfiParallel parallel(pool);
  return ToFfi("update", Update(&parallel, call.table, call.rules, args));
}

ffi::Error GlobalNormHandler(ffi::ThreadPool pool, ffi::RemainingArgs lookups,
                             ffi::Result<ffi::BufferR0<ffi::F32>> norm,
                             ffi::Dictionary attributes) {
  TableCall call;
  std::vector<UpdateBatch> batches;
  FloatType type = FloatType::kFloat32;
  ONEEMB_RETURN_IF_ERROR(
      DecodeNorm(attributes, lookups, &call, &batches, &type));
  FfiParallel parallel(pool);
  *norm->typed_data() = GlobalNorm(&parallel, call.rules.keys, batches,
                                   call.rules.embedding_dim, type);
  return ffi::Error::Success();
}

}  // namespace

ONEEMB_DEFINE_HANDLER(OneembUpdate, UpdateHandler);
ONEEMB_DEFINE_HANDLER(OneembGlobalNorm, GlobalNormHandler);

}  // namespace oneemb
