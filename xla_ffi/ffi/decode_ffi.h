// What the FFI handlers of CPU and GPU share: from attributes and buffers to
// what kernels are told. Looks at types, shapes and addresses, never at what a
// buffer holds: that may be on a GPU.
//
// Only handlers include this: kernels do not know XLA.
#pragma once

#include <cfenv>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <vector>

#include "core/lookup_output.h"
#include "core/table_view.h"
#include "core/update_batch.h"
#include "xla/ffi/api/ffi.h"

#define ONEEMB_RETURN_IF_ERROR(expression)           \
  do {                                               \
    ::xla::ffi::Error oneemb_error = (expression);   \
    if (oneemb_error.failure()) return oneemb_error; \
  } while (false)

namespace oneemb {

// The floating-point environment that C++ starts with, while it lives. XLA's
// threads flush subnormal numbers to zero; GPUs and our tests do not.
class DefaultFloats {
 public:
  DefaultFloats() : saved_() {
    std::fegetenv(&saved_);
    std::fesetenv(FE_DFL_ENV);
  }
  ~DefaultFloats() { std::fesetenv(&saved_); }
  DefaultFloats(const DefaultFloats&) = delete;
  DefaultFloats& operator=(const DefaultFloats&) = delete;

 private:
  std::fenv_t saved_;
};

// What a handler is told of its table, and the ids of the call. A handler makes
// it first and keeps it to the end: it owns what the rules point to, and all
// its numbers are read and used alike.
struct TableCall {
  DefaultFloats floats;
  TableRules rules{};
  std::vector<InitializerConfig> initializers;
  TableView table{};
  IdsView ids{};
};

// The arrays of a table that holds rows, as a writer has them.
struct TableBuffers {
  const xla::ffi::AnyBuffer& index;
  const xla::ffi::AnyBuffer& rows;
  const xla::ffi::AnyBuffer& clock;
  const xla::ffi::AnyBuffer& counters;
  const xla::ffi::AnyBuffer& layout_version;
};

// What write_rows takes besides the table.
struct NewRowBuffers {
  const xla::ffi::AnyBuffer& step;
  const xla::ffi::AnyBuffer& ids;
  const xla::ffi::AnyBuffer& table_ids;
  const xla::ffi::AnyBuffer& values;
};

// What a lookup takes besides index, rows and ids, and its results.
struct LookupBuffers {
  const xla::ffi::AnyBuffer& layout_version;
  const xla::ffi::AnyBuffer& activations;
  const xla::ffi::AnyBuffer& slots;
  const xla::ffi::AnyBuffer& seen_version;
  const xla::ffi::AnyBuffer& counts;
};

// What an update takes besides the table and its lookups.
struct UpdateBuffers {
  const xla::ffi::AnyBuffer& step;
  const xla::ffi::AnyBuffer& generation;
  const xla::ffi::AnyBuffer& learning_rate;
  const xla::ffi::AnyBuffer& grad_scale;
  const xla::ffi::AnyBuffer& apply;
};

// Fails unless the buffer has this type and shape; -1 matches any size.
xla::ffi::Error CheckBuffer(const char* name, const xla::ffi::AnyBuffer& buffer,
                            xla::ffi::DataType type,
                            std::initializer_list<int64_t> shape);

// Fails unless each of these arguments is, in place, the result of its number.
xla::ffi::Error CheckInPlace(
    const char* call, const std::vector<const xla::ffi::AnyBuffer*>& arguments,
    const xla::ffi::RemainingRets& results);

// The rules of a table, alone or with the arrays of one that holds rows.
xla::ffi::Error DecodeRules(const xla::ffi::Dictionary& attributes,
                            TableCall* call);
xla::ffi::Error DecodeTable(const xla::ffi::Dictionary& attributes,
                            const TableBuffers& buffers, TableCall* call);

// The arrays of a table that the call makes, for `min_capacity` rows or more.
xla::ffi::Error DecodeNewTable(const TableRules& rules,
                               const xla::ffi::AnyBuffer& index,
                               const xla::ffi::AnyBuffer& rows,
                               const xla::ffi::AnyBuffer& clock,
                               int64_t min_capacity, TableView* table);

// The residency of one that is cached; of others there is no such result.
xla::ffi::Error DecodeNewResidency(const xla::ffi::RemainingRets& results,
                                   TableView* table);

// ids uint32[microbatches, n, words] and table_ids int32[microbatches, m].
xla::ffi::Error DecodeIds(const xla::ffi::AnyBuffer& ids,
                          const xla::ffi::AnyBuffer& table_ids, IdsView* view);

// Rules, table and ids of a call that only reads.
xla::ffi::Error DecodeRead(const xla::ffi::Dictionary& attributes,
                           const xla::ffi::AnyBuffer& index,
                           const xla::ffi::AnyBuffer& rows,
                           const xla::ffi::AnyBuffer& ids,
                           const xla::ffi::AnyBuffer& table_ids,
                           TableCall* call);

// The rest of a lookup, whose ids are in `call`.
xla::ffi::Error DecodeLookup(const LookupBuffers& buffers, TableCall* call,
                             LookupOutput* out);

// Checks the results of read_rows: whole rows, and slots.
xla::ffi::Error CheckRowsRead(const TableCall& call,
                              const xla::ffi::AnyBuffer& rows,
                              const xla::ffi::AnyBuffer& slots);

// All of write_rows, which works in place.
xla::ffi::Error DecodeWriteRows(const xla::ffi::Dictionary& attributes,
                                const TableBuffers& table,
                                const NewRowBuffers& buffers,
                                const xla::ffi::RemainingRets& results,
                                TableCall* call);

// The lookups of an update or a norm have six buffers each: ids, table_ids,
// slots, layout_version, counts, gradients. An update has them from argument
// `first` on, as many as attribute num_lookups says; what follows them only
// orders other reads before this write.
xla::ffi::Error DecodeUpdate(const xla::ffi::Dictionary& attributes,
                             const UpdateBuffers& buffers,
                             const xla::ffi::RemainingArgs& lookups,
                             size_t first, int64_t embedding_dim,
                             std::vector<UpdateBatch>* batches,
                             FloatType* gradient_type);
xla::ffi::Error DecodeNorm(const xla::ffi::Dictionary& attributes,
                           const xla::ffi::RemainingArgs& lookups,
                           TableCall* call, std::vector<UpdateBatch>* batches,
                           FloatType* gradient_type);

}  // namespace oneemb
