// The row pass of an update, one function an optimizer.
#pragma once

#include "cuda/reduce.cuh"
#include "cuda/row_update.cuh"

namespace oneemb::gpu {

// Calls f with the access type of `type`; f returns a cudaError_t.
template <class F>
cudaError_t DispatchAccess(FloatType type, const F& f) {
  cudaError_t error = cudaSuccess;
  DispatchFloat(type, [&](auto access) { error = f(access); });
  return error;
}

// Sums the gradients of each row and applies the optimizer to it. Defined
// for every optimizer in the files update_rows_*.cu: together they would take
// minutes to compile.
template <class Optimizer>
cudaError_t UpdateRows(cudaStream_t stream, const ReduceArgs& args,
                       const typename UpdateSink<Optimizer>::Args& sink,
                       FloatType type);

#define ONEEMB_DECLARE_UPDATE_ROWS(Optimizer)      \
  template <>                                      \
  cudaError_t UpdateRows<Optimizer>(               \
      cudaStream_t stream, const ReduceArgs& args, \
      const UpdateSink<Optimizer>::Args& sink, FloatType type)

ONEEMB_DECLARE_UPDATE_ROWS(Sgd);
ONEEMB_DECLARE_UPDATE_ROWS(Momentum);
ONEEMB_DECLARE_UPDATE_ROWS(Adam);
ONEEMB_DECLARE_UPDATE_ROWS(Amsgrad);
ONEEMB_DECLARE_UPDATE_ROWS(Adagrad);
ONEEMB_DECLARE_UPDATE_ROWS(RowwiseAdagrad);
ONEEMB_DECLARE_UPDATE_ROWS(Ftrl);
ONEEMB_DECLARE_UPDATE_ROWS(FtrlRoot);
ONEEMB_DECLARE_UPDATE_ROWS(FtrlInverseRoot);
ONEEMB_DECLARE_UPDATE_ROWS(SmartDecayAdam);
ONEEMB_DECLARE_UPDATE_ROWS(Lamb);

#define ONEEMB_DEFINE_UPDATE_ROWS(Optimizer)                        \
  ONEEMB_DECLARE_UPDATE_ROWS(Optimizer) {                           \
    return DispatchAccess(type, [&](auto access) {                  \
      return LaunchReduce<UpdateSink<Optimizer>, decltype(access)>( \
          stream, args, sink, RowWidth(args.shape.dim));            \
    });                                                             \
  }

}  // namespace oneemb::gpu
