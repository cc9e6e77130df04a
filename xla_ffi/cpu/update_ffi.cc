#include "cpu/update_ffi.h"

#include "cpu/ffi_util.h"
#include "cpu/handlers.h"
#include "cpu/norm.h"

namespace oneemb {

namespace ffi = xla::ffi;

namespace {

template <class T>
T Scalar(const ffi::AnyBuffer& buffer) {
  return *static_cast<const T*>(buffer.untyped_data());
}

}  // namespace

ffi::Error DecodeUpdateArgs(const UpdateBuffers& buffers,
                            const ffi::RemainingArgs& lookups, size_t first,
                            const ffi::Dictionary& attributes,
                            int64_t embedding_dim, UpdateArgs* args) {
  ONEEMB_RETURN_IF_ERROR(CheckBuffer("step", buffers.step, ffi::U32, {1}));
  ONEEMB_RETURN_IF_ERROR(
      CheckBuffer("generation", buffers.generation, ffi::U32, {1}));
  ONEEMB_RETURN_IF_ERROR(
      CheckBuffer("learning_rate", buffers.learning_rate, ffi::F32, {}));
  ONEEMB_RETURN_IF_ERROR(
      CheckBuffer("grad_scale", buffers.grad_scale, ffi::F32, {}));
  ONEEMB_RETURN_IF_ERROR(CheckBuffer("apply", buffers.apply, ffi::PRED, {}));
  size_t num_lookups = 0;
  ONEEMB_RETURN_IF_ERROR(DecodeNumLookups(attributes, &num_lookups));
  ONEEMB_RETURN_IF_ERROR(DecodeBatches(lookups, num_lookups, embedding_dim,
                                       &args->batches, &args->gradient_type,
                                       first));
  args->learning_rate = Scalar<float>(buffers.learning_rate);
  args->grad_scale = Scalar<float>(buffers.grad_scale);
  args->apply = Scalar<bool>(buffers.apply);
  args->step = static_cast<uint32_t*>(buffers.step.untyped_data());
  args->generation = static_cast<uint32_t*>(buffers.generation.untyped_data());
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
  const std::vector<const ffi::AnyBuffer*> in_place = {
      &index, &rows, &clock, &counters, &step, &layout_version, &generation};
  RulesHolder holder;
  TableView table{};
  UpdateArgs args{};
  ONEEMB_RETURN_IF_ERROR(DecodeRules(attributes, &holder));
  ONEEMB_RETURN_IF_ERROR(DecodeReadTable(holder.rules, index, rows, &table));
  ONEEMB_RETURN_IF_ERROR(
      DecodeTableState(clock, counters, layout_version, &table));
  ONEEMB_RETURN_IF_ERROR(DecodeUpdateArgs(
      {step, generation, learning_rate, grad_scale, apply}, lookups, 0,
      attributes, holder.rules.embedding_dim, &args));
  ONEEMB_RETURN_IF_ERROR(CheckInPlace("update", in_place, results));
  FfiParallel parallel(pool);
  if (!Update(&parallel, table, holder.rules, args)) {
    return ffi::Error(ffi::ErrorCode::kResourceExhausted,
                      "update: no memory for scratch space");
  }
  return ffi::Error::Success();
}

ffi::Error GlobalNormHandler(ffi::ThreadPool pool, ffi::RemainingArgs lookups,
                             ffi::Result<ffi::BufferR0<ffi::F32>> norm,
                             ffi::Dictionary attributes) {
  RulesHolder holder;
  std::vector<UpdateBatch> batches;
  FloatType type = FloatType::kFloat32;
  ONEEMB_RETURN_IF_ERROR(DecodeRules(attributes, &holder));
  const int64_t dim = holder.rules.embedding_dim;
  const size_t num_lookups = lookups.size() / kBuffersPerBatch;
  ONEEMB_RETURN_IF_ERROR(
      DecodeBatches(lookups, num_lookups, dim, &batches, &type));
  FfiParallel parallel(pool);
  *norm->typed_data() =
      GlobalNorm(&parallel, holder.rules.keys, batches, dim, type);
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(OneembUpdate, UpdateHandler,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
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
                                  .RemainingRets()  // the table arrays
                                  .Attrs());

XLA_FFI_DEFINE_HANDLER_SYMBOL(OneembGlobalNorm, GlobalNormHandler,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .RemainingArgs()  // lookups
                                  .Ret<ffi::BufferR0<ffi::F32>>()
                                  .Attrs());

}  // namespace oneemb
