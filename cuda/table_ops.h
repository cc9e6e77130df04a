// What the host does to a whole table between steps.
#pragma once

#include <cstdint>

#include "core/table_view.h"
#include "cuda/launch.h"

namespace oneemb::gpu {

// As oneemb::CreateTable on the CPU: rows are left as they are.
cudaError_t CreateTable(cudaStream_t stream, const TableView& table);

// As oneemb::GrowTable on the CPU: every row keeps its slot.
cudaError_t GrowTable(cudaStream_t stream, const TableView& from,
                      const TableView& to);

int64_t WriteRowsSpace(const TableRules& rules, int64_t capacity, int64_t n);

// As oneemb::WriteRows on the CPU; `step` is on the device. Of a cached table,
// where there is no step, rows go to the slots that their keys have, if *apply.
cudaError_t WriteRows(cudaStream_t stream, const TableView& table,
                      const TableRules& rules, const IdsView& ids,
                      const uint32_t* rows, uint32_t* step, void* workspace,
                      const bool* apply = nullptr);

}  // namespace oneemb::gpu
