// update: gradients into rows, insertion and optimizer in one pass.
#pragma once

#include <cstdint>
#include <vector>

#include "core/table_view.h"
#include "core/update_batch.h"
#include "cpu/parallel.h"

namespace oneemb {

struct UpdateArgs {
  std::vector<UpdateBatch> batches;
  FloatType gradient_type;
  float learning_rate;
  float grad_scale;
  bool apply;
  uint32_t* step;
  uint32_t* generation;
};

// Sums the gradients of each row, inserts the rows that are missing in order of
// first occurrence, and applies the optimizer to every row that the batch
// touches. One call is one step. With apply false nothing changes; with a
// learning rate that is negative or not finite, or a batch that is not as its
// lookup left it, only a counter does; so too where a cached table lacks a row
// that was to be staged. False when there is no memory to work in; then nothing
// has changed.
bool Update(Parallel* parallel, const TableView& table, const TableRules& rules,
            const UpdateArgs& args);

}  // namespace oneemb
