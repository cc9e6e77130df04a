// From the ids of a batch to the slot of every position: the first half of
// update, write_rows and global_norm.
//
// Three kernels. Place (place.cu) finds the slots that exist and lets the
// positions whose key has none claim a cell of a hash table that lives for this
// call, each cell going to the first position of its key. Number (settle.cu)
// counts the first positions from left to right, which gives new keys their
// slots in order of first occurrence, and starts to insert them. Assign
// (settle.cu) gives every position its slot, finishes the insertion and writes
// the new rows.
#pragma once

#include <cstdint>

#include "core/table_view.h"
#include "cuda/arguments.h"
#include "cuda/launch.h"
#include "cuda/sort.h"
#include "cuda/tile_sums.h"

namespace oneemb::gpu {

enum class PlaceMode : int32_t {
  kUpdate,     // the slots of the lookups, where the layout is what they saw
  kWriteRows,  // every key is searched for; new rows are left to the caller
  kNumber,     // no table: slots are numbers in order of first occurrence
  kStage,      // keys that a cached table lacks are numbered; it stays as it is
};

// Whether positions come with what a lookup found.
ONEEMB_HD constexpr bool HasContexts(PlaceMode mode) {
  return mode == PlaceMode::kUpdate || mode == PlaceMode::kNumber;
}

// Positions that a block of Number looks after.
constexpr int kNumberTile = 4 * kBlockThreads;

// What the kernels of one call tell each other. Begins as zeros.
struct PlaceState {
  uint32_t active;       // 0: nothing is to change
  uint32_t checksum;     // of the contexts, less what their lookups wrote
  uint32_t outside;      // a slot is trusted, and the table does not have it
  uint32_t any_missing;  // a position has claimed a cell
  uint32_t next_tile;    // of Number
  uint32_t step;         // before this call
  uint32_t unstaged;     // positions of a cached table that have no slot
  uint32_t was_missing;  // and those that had none when they were looked up
  uint32_t resident;     // kStage: keys whose clocks were touched (tier.h)
  uint32_t touched;      // and blocks that have done so
  uint64_t rows_before;
  uint64_t num_new;                        // distinct keys that had no slot
  uint64_t fingerprint[2];                 // kStage: of these keys
  alignas(16) unsigned char scalars[128];  // Optimizer::Scalars of this step
};

// A key that had no row, by its number in order of first occurrence.
struct alignas(16) NewKey {
  uint64_t id;
  uint16_t table;       // of the key
  uint16_t init_table;  // whose initializer the row begins with
  int32_t slot;         // that `stage` has reserved for it in a cached table
};
static_assert(sizeof(NewKey) == 16, "it goes by one load");

struct PlaceArgs {
  PlaceMode mode;
  FlatBatch batch;
  TableView table;
  KeyRules keys;
  InitializerArgs initializers;
  OptimizerConfig optimizer;
  int64_t embedding_dim;
  const bool* apply;  // null: true
  uint64_t seeds[2];  // kStage: of the fingerprint
  // kUpdate
  const float* learning_rate;
  uint32_t* step;
  uint32_t* generation;
  // Workspace. Zero at the beginning:
  PlaceState* state;
  TileSums firsts;        // of Number
  uint32_t* cells;        // a power of two of them
  uint32_t* cell_tables;  // with shared keys: ~ the lowest table that asked
  int64_t num_cells;
  SortPlan sort;
  // Anything at the beginning:
  int32_t* codes;  // the sort key, or meanwhile a claimed cell
  NewKey* new_keys;
};

// Plans the sort and takes the arrays above, for `n` positions of keys below
// `num_keys`: what begins as zeros, with which the workspace begins, and then
// the rest.
void TakePlaceZeros(int64_t n, int64_t num_keys, bool shared_keys,
                    Workspace* workspace, PlaceArgs* args);
void TakePlaceRest(int64_t n, Workspace* workspace, PlaceArgs* args);

// What begins as zeros, as far as the workspace goes.
struct Zeros {
  void* data;
  int64_t bytes;
};

// Leaves the sort key of every position in `codes`, and the digits of all keys
// counted. Fills `zeros` first.
cudaError_t Place(cudaStream_t stream, const PlaceArgs& args,
                  const Zeros& zeros);

// The same in two halves: Find changes nothing but `state` and the like, Settle
// the table. Of a cached table the Store has its say in between.
cudaError_t PlaceFind(cudaStream_t stream, const PlaceArgs& args,
                      const Zeros& zeros);
cudaError_t PlaceSettle(cudaStream_t stream, const PlaceArgs& args);
// The second half of kStage: new_keys and state->num_new.
cudaError_t PlaceNumber(cudaStream_t stream, const PlaceArgs& args);

}  // namespace oneemb::gpu
