// lookup and read_rows: from ids to what their rows hold. They read the table.
#pragma once

#include <cstdint>
#include <functional>

#include "core/lookup_output.h"
#include "core/table_view.h"
#include "cuda/launch.h"

namespace oneemb::gpu {

// What the kernels of a lookup of a cached table and its Store tell each other.
struct LookupState {
  uint32_t stale;     // from before rows are found: nothing is to be read
  uint32_t unstaged;  // added to as they are found: ids that have no slot
};

// What is put on the stream around the kernel that finds rows, for a cached
// table.
struct LookupHooks {
  std::function<cudaError_t(LookupState*)> before_find;
  std::function<cudaError_t(LookupState*)> after_find;
};

// Bytes of workspace of both, for `n` ids.
int64_t LookupSpace(const TableRules& rules, int64_t n);

// As oneemb::Lookup on the CPU: one kernel finds slots and copies rows, and one
// writes what has no row. In one kernel, the registers of the initializers
// would leave room for few warps.
cudaError_t Lookup(cudaStream_t stream, const TableView& table,
                   const TableRules& rules, const IdsView& ids,
                   const LookupOutput& out, void* workspace,
                   const LookupHooks* hooks = nullptr);

// As oneemb::ReadRows on the CPU.
cudaError_t ReadRows(cudaStream_t stream, const TableView& table,
                     const TableRules& rules, const IdsView& ids,
                     uint32_t* rows, int32_t* slots, void* workspace);

}  // namespace oneemb::gpu
