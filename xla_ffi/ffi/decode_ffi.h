// What the FFI handlers of CPU and GPU share: checks of buffers, and the rules
// of a table out of attributes.
//
// Only handlers include this: kernels do not know XLA.
#pragma once

#include <cfenv>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <vector>

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

// Fails unless the buffer has this type and shape; -1 matches any size.
xla::ffi::Error CheckBuffer(const char* name, const xla::ffi::AnyBuffer& buffer,
                            xla::ffi::DataType type,
                            std::initializer_list<int64_t> shape);

// The float type of activations or gradients, or an error.
xla::ffi::Error DecodeFloatType(const char* name,
                                const xla::ffi::AnyBuffer& buffer,
                                FloatType* type);

// The rules of a table; owns what TableRules points to. A handler makes it
// first and keeps it to the end, so that all its numbers are read and used
// alike.
struct RulesHolder {
  DefaultFloats floats;
  TableRules rules;
  std::vector<InitializerConfig> initializers;
};
xla::ffi::Error DecodeRules(const xla::ffi::Dictionary& attributes,
                            RulesHolder* holder);

// How many of an update's trailing arguments are lookups to apply: attribute
// num_lookups. What follows them only orders other reads before this write.
xla::ffi::Error DecodeNumLookups(const xla::ffi::Dictionary& attributes,
                                 size_t* num_lookups);

// The arrays of a table that holds rows: index and rows, and what a writer
// needs besides. Shapes are checked against the rules.
xla::ffi::Error DecodeReadTable(const TableRules& rules,
                                const xla::ffi::AnyBuffer& index,
                                const xla::ffi::AnyBuffer& rows,
                                TableView* table);
xla::ffi::Error DecodeTableState(const xla::ffi::AnyBuffer& clock,
                                 const xla::ffi::AnyBuffer& counters,
                                 const xla::ffi::AnyBuffer& layout_version,
                                 TableView* table);

// Fails unless each of these arguments is, in place, the result of its number.
xla::ffi::Error CheckInPlace(
    const char* call, const std::vector<const xla::ffi::AnyBuffer*>& arguments,
    const xla::ffi::RemainingRets& results);

// ids uint32[microbatches, n, words] and table_ids int32[microbatches, m].
xla::ffi::Error DecodeIds(const xla::ffi::AnyBuffer& ids,
                          const xla::ffi::AnyBuffer& table_ids, IdsView* view);

// The batches of an update or a norm: six buffers each (ids, table_ids, slots,
// layout_version, counts, gradients), from argument `first` on.
constexpr size_t kBuffersPerBatch = 6;
xla::ffi::Error DecodeBatches(const xla::ffi::RemainingArgs& args,
                              size_t num_batches, int64_t embedding_dim,
                              std::vector<UpdateBatch>* batches,
                              FloatType* gradient_type, size_t first = 0);

}  // namespace oneemb
