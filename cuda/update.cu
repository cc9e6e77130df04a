#include "core/counters.h"
#include "cuda/place.h"
#include "cuda/update.h"
#include "cuda/update_rows.h"

namespace oneemb::gpu {

namespace {

// What an update keeps in its workspace.
struct Space {
  PlaceArgs place;
  ReduceArgs reduce;
  int64_t zero_bytes;
};

void TakeSpace(const TableRules& rules, int64_t capacity, int64_t n,
               Workspace* workspace, Space* space) {
  space->place.sort = PlanSort(n, capacity);
  TakePlaceSpace(n, rules.keys.shared_keys, workspace, &space->place);
  space->reduce.tickets = workspace->Take<uint32_t>(PartialCount(n));
  space->zero_bytes = workspace->used();
  space->place.codes = workspace->Take<int32_t>(n);
  space->place.new_keys = workspace->Take<NewKey>(n);
  for (SlotPosition*& entries : space->place.sort.entries) {
    entries = workspace->Take<SlotPosition>(n);
  }
  space->reduce.partials =
      workspace->Take<float>(PartialCount(n) * rules.embedding_dim);
}

void FillPlaceArgs(const TableView& table, const TableRules& rules,
                   const UpdateOperands& operands, PlaceArgs* args) {
  args->mode = PlaceMode::kUpdate;
  args->table = table;
  args->keys = rules.keys;
  args->optimizer = rules.optimizer;
  args->embedding_dim = rules.embedding_dim;
  args->learning_rate = operands.learning_rate;
  args->apply = operands.apply;
  args->step = operands.step;
  args->generation = operands.generation;
}

template <class Optimizer>
cudaError_t LaunchRows(cudaStream_t stream, const TableView& table,
                       const UpdateOperands& operands, const Space& space) {
  const typename UpdateSink<Optimizer>::Args sink{
      table.rows, table.row_words, table.clock, operands.grad_scale,
      space.place.state};
  return UpdateRows<Optimizer>(stream, space.reduce, sink,
                               operands.gradient_type);
}

}  // namespace

int64_t UpdateSpace(const TableRules& rules, int64_t capacity, int64_t n,
                    int64_t num_batches) {
  Workspace workspace;
  Space space{};
  TakeSpace(rules, capacity, n, &workspace, &space);
  MeasureFlatBatch(num_batches, &workspace);
  MeasureInitializerArgs(rules.initializers.num_columns, rules.keys.num_tables,
                         &workspace);
  return workspace.used();
}

cudaError_t Update(cudaStream_t stream, const TableView& table,
                   const TableRules& rules, const UpdateOperands& operands,
                   void* workspace_base) {
  int64_t n = 0;
  for (const UpdateBatch& batch : operands.batches) n += batch.ids.size;
  Workspace workspace(workspace_base);
  Space space{};
  TakeSpace(rules, table.capacity, n, &workspace, &space);
  ONEEMB_RETURN_IF_CUDA_ERROR(cudaMemsetAsync(
      workspace_base, 0, static_cast<size_t>(space.zero_bytes), stream));
  FillPlaceArgs(table, rules, operands, &space.place);
  ONEEMB_RETURN_IF_CUDA_ERROR(
      MakeFlatBatch(stream, operands.batches, &workspace, &space.place.batch));
  ONEEMB_RETURN_IF_CUDA_ERROR(
      MakeInitializerArgs(stream, rules.initializers, rules.keys.num_tables,
                          &workspace, &space.place.initializers));
  ONEEMB_RETURN_IF_CUDA_ERROR(Place(stream, space.place));
  ReduceArgs& reduce = space.reduce;
  reduce.batch = space.place.batch;
  reduce.n = n;
  reduce.sentinel = space.place.sort.sentinel;
  reduce.shape = ShapeRows(rules.embedding_dim, RowWidth(rules.embedding_dim));
  ShareWindows(&reduce);
  reduce.active = &space.place.state->active;
  reduce.non_finite = table.counters + kNonFinite;
  ONEEMB_RETURN_IF_CUDA_ERROR(
      Sort(stream, space.place.sort,
           reinterpret_cast<const uint32_t*>(space.place.codes), reduce.active,
           &reduce.entries));
  cudaError_t error = cudaErrorInvalidValue;
  DispatchOptimizer(rules.optimizer.kind, [&](auto optimizer) {
    error = LaunchRows<decltype(optimizer)>(stream, table, operands, space);
  });
  return error;
}

}  // namespace oneemb::gpu
