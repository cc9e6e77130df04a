#include "core/counters.h"
#include "cuda/sorted_batch.h"
#include "cuda/update.h"
#include "cuda/update_rows.h"

namespace oneemb::gpu {

namespace {

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
                       const UpdateOperands& operands,
                       const SortedBatch& batch) {
  const typename UpdateSink<Optimizer>::Args sink{
      table.rows,      table.row_words,     table.clock,
      table.residency, operands.grad_scale, batch.place.state};
  return UpdateRows<Optimizer>(stream, batch.reduce, sink,
                               operands.gradient_type);
}

}  // namespace

int64_t UpdateSpace(const TableRules& rules, int64_t capacity, int64_t n,
                    int64_t num_batches) {
  Workspace workspace;
  SortedBatch sorted{};
  TakeSortedBatch(rules, n, capacity, &workspace, &sorted);
  MeasureFlatBatch(num_batches, &workspace);
  MeasureInitializerArgs(rules.initializers.num_columns, rules.keys.num_tables,
                         &workspace);
  return workspace.used();
}

cudaError_t Update(cudaStream_t stream, const TableView& table,
                   const TableRules& rules, const UpdateOperands& operands,
                   void* workspace_base, const JudgeHook& judge) {
  int64_t n = 0;
  for (const UpdateBatch& batch : operands.batches) n += batch.ids.size;
  Workspace workspace(workspace_base);
  SortedBatch sorted{};
  TakeSortedBatch(rules, n, table.capacity, &workspace, &sorted);
  FillPlaceArgs(table, rules, operands, &sorted.place);
  ONEEMB_RETURN_IF_CUDA_ERROR(
      MakeFlatBatch(stream, operands.batches, &workspace, &sorted.place.batch));
  ONEEMB_RETURN_IF_CUDA_ERROR(
      MakeInitializerArgs(stream, rules.initializers, rules.keys.num_tables,
                          &workspace, &sorted.place.initializers));
  ONEEMB_RETURN_IF_CUDA_ERROR(
      PlaceFind(stream, sorted.place, {workspace_base, sorted.zero_bytes}));
  if (judge) ONEEMB_RETURN_IF_CUDA_ERROR(judge(sorted.place.state));
  ONEEMB_RETURN_IF_CUDA_ERROR(PlaceSettle(stream, sorted.place));
  sorted.reduce.non_finite = table.counters + kNonFinite;
  ONEEMB_RETURN_IF_CUDA_ERROR(SortBatch(stream, rules, n, &sorted));
  cudaError_t error = cudaErrorInvalidValue;
  DispatchOptimizer(rules.optimizer.kind, [&](auto optimizer) {
    error = LaunchRows<decltype(optimizer)>(stream, table, operands, sorted);
  });
  return error;
}

}  // namespace oneemb::gpu
