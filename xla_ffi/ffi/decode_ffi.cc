#include "ffi/decode_ffi.h"

#include <string>

#include "core/counters.h"
#include "core/optimizer_math.h"
#include "core/row_layout.h"

namespace oneemb {

namespace ffi = xla::ffi;

namespace {

std::string Shape(const ffi::AnyBuffer& buffer) {
  std::string text = "[";
  for (const int64_t size : buffer.dimensions()) {
    text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  }
  return text + "]";
}

// Reads attribute `name` into *out.
template <class T>
ffi::Error Get(const ffi::Dictionary& attributes, const char* name, T* out) {
  const ffi::ErrorOr<T> value = attributes.get<T>(name);
  if (value.has_error()) {
    return ffi::Error::InvalidArgument(std::string("attribute ") + name + ": " +
                                       value.error().message());
  }
  *out = *value;
  return ffi::Error::Success();
}

ffi::Error DecodeKeyRules(const ffi::Dictionary& attributes, KeyRules* keys) {
  int64_t padding_id = 0;
  ONEEMB_RETURN_IF_ERROR(Get(attributes, "num_tables", &keys->num_tables));
  ONEEMB_RETURN_IF_ERROR(Get(attributes, "shared_keys", &keys->shared_keys));
  ONEEMB_RETURN_IF_ERROR(Get(attributes, "has_padding", &keys->has_padding));
  ONEEMB_RETURN_IF_ERROR(Get(attributes, "padding_id", &padding_id));
  keys->padding_id = static_cast<uint64_t>(padding_id);
  return ffi::Error::Success();
}

ffi::Error DecodeInitializers(const ffi::Dictionary& attributes,
                              TableCall* call) {
  int64_t seed = 0;
  ffi::Span<const int32_t> column_ends;
  ffi::Span<const double> encoded;
  ONEEMB_RETURN_IF_ERROR(Get(attributes, "seed", &seed));
  ONEEMB_RETURN_IF_ERROR(Get(attributes, "column_ends", &column_ends));
  ONEEMB_RETURN_IF_ERROR(Get(attributes, "initializers", &encoded));
  TableRules& rules = call->rules;
  const size_t columns = column_ends.size();
  const size_t configs = columns * static_cast<size_t>(rules.keys.num_tables);
  if (columns == 0 || encoded.size() != configs * kInitializerDoubles) {
    return ffi::Error::InvalidArgument(
        "attribute initializers: one of each column of each table is needed");
  }
  call->initializers.reserve(configs);
  for (size_t i = 0; i < configs; ++i) {
    call->initializers.push_back(
        DecodeInitializer(encoded.begin() + i * kInitializerDoubles));
  }
  rules.embedding_dim = column_ends.begin()[columns - 1];
  rules.initializers = {static_cast<uint64_t>(seed),
                        static_cast<int32_t>(columns), column_ends.begin(),
                        call->initializers.data(), rules.keys.shared_keys};
  return ffi::Error::Success();
}

ffi::Error CheckRowWords(const TableRules& rules, int64_t row_words) {
  int64_t wanted = 0;
  DispatchOptimizer(rules.optimizer.kind, [&](auto optimizer) {
    using Optimizer = decltype(optimizer);
    wanted = RowWords(rules.embedding_dim, Optimizer::kStateFields,
                      Optimizer::kRowWords);
  });
  if (row_words == wanted) return ffi::Error::Success();
  return ffi::Error::InvalidArgument("rows: " + std::to_string(row_words) +
                                     " words a row, the optimizer needs " +
                                     std::to_string(wanted));
}

ffi::Error DecodeFloatType(const char* name, const ffi::AnyBuffer& buffer,
                           FloatType* type) {
  switch (buffer.element_type()) {
    case ffi::F32:
      *type = FloatType::kFloat32;
      return ffi::Error::Success();
    case ffi::BF16:
      *type = FloatType::kBFloat16;
      return ffi::Error::Success();
    case ffi::F16:
      *type = FloatType::kFloat16;
      return ffi::Error::Success();
    default:
      return ffi::Error::InvalidArgument(
          std::string(name) + ": neither float32, bfloat16 nor float16");
  }
}

}  // namespace

ffi::Error CheckBuffer(const char* name, const ffi::AnyBuffer& buffer,
                       ffi::DataType type,
                       std::initializer_list<int64_t> shape) {
  const auto dims = buffer.dimensions();
  bool fits = buffer.element_type() == type && dims.size() == shape.size();
  size_t d = 0;
  std::string wanted;
  for (const int64_t size : shape) {
    fits = fits && (size < 0 || dims[d] == size);
    wanted += (d == 0 ? "" : ", ") + (size < 0 ? "n" : std::to_string(size));
    ++d;
  }
  if (fits) return ffi::Error::Success();
  return ffi::Error::InvalidArgument(
      std::string(name) + ": shape " + Shape(buffer) + " of type " +
      std::to_string(static_cast<int>(buffer.element_type())) + ", wanted [" +
      wanted + "] of type " + std::to_string(static_cast<int>(type)));
}

ffi::Error CheckInPlace(const char* call,
                        const std::vector<const ffi::AnyBuffer*>& arguments,
                        const ffi::RemainingRets& results) {
  for (size_t i = 0; i < arguments.size(); ++i) {
    ffi::ErrorOr<ffi::Result<ffi::AnyBuffer>> result =
        results.get<ffi::AnyBuffer>(i);
    if (result.has_error()) return result.error();
    if ((*result)->untyped_data() != arguments[i]->untyped_data()) {
      return ffi::Error::Internal(std::string(call) +
                                  ": the table is not updated in place");
    }
  }
  return ffi::Error::Success();
}

ffi::Error DecodeRules(const ffi::Dictionary& attributes, TableCall* call) {
  TableRules& rules = call->rules;
  ONEEMB_RETURN_IF_ERROR(DecodeKeyRules(attributes, &rules.keys));
  ONEEMB_RETURN_IF_ERROR(DecodeInitializers(attributes, call));
  int32_t kind = 0;
  ffi::Span<const double> hyper;
  ONEEMB_RETURN_IF_ERROR(Get(attributes, "optimizer_kind", &kind));
  ONEEMB_RETURN_IF_ERROR(Get(attributes, "optimizer_hyper", &hyper));
  rules.optimizer =
      DecodeOptimizer(kind, hyper.begin(), static_cast<int64_t>(hyper.size()));
  if (rules.optimizer.kind == OptimizerKind::kUnknown) {
    return ffi::Error::InvalidArgument(
        "attribute optimizer_kind: " + std::to_string(kind) + " is unknown");
  }
  return ffi::Error::Success();
}

namespace {

// Index and rows of a table whose rules are known.
ffi::Error DecodeRows(const TableRules& rules, const ffi::AnyBuffer& index,
                      const ffi::AnyBuffer& rows, TableView* table) {
  ONEEMB_RETURN_IF_ERROR(
      CheckBuffer("index", index, ffi::U32, {-1, kBucketWords}));
  ONEEMB_RETURN_IF_ERROR(CheckBuffer("rows", rows, ffi::U32, {-1, -1}));
  ONEEMB_RETURN_IF_ERROR(CheckRowWords(rules, rows.dimensions()[1]));
  table->index = {static_cast<Bucket*>(index.untyped_data()),
                  index.dimensions()[0]};
  table->rows = static_cast<uint32_t*>(rows.untyped_data());
  table->capacity = rows.dimensions()[0];
  table->row_words = rows.dimensions()[1];
  return ffi::Error::Success();
}

ffi::Error DecodeClock(const ffi::AnyBuffer& clock, TableView* table) {
  ONEEMB_RETURN_IF_ERROR(
      CheckBuffer("clock", clock, ffi::U32, {table->capacity}));
  table->clock = clock.typed_data<uint32_t>();
  return ffi::Error::Success();
}

ffi::Error DecodeLayoutVersion(const ffi::AnyBuffer& layout_version,
                               TableView* table) {
  ONEEMB_RETURN_IF_ERROR(
      CheckBuffer("layout_version", layout_version, ffi::U32, {1, 2}));
  table->layout_version = static_cast<uint64_t*>(layout_version.untyped_data());
  return ffi::Error::Success();
}

}  // namespace

ffi::Error DecodeTable(const ffi::Dictionary& attributes,
                       const TableBuffers& buffers, TableCall* call) {
  ONEEMB_RETURN_IF_ERROR(DecodeRules(attributes, call));
  TableView* const table = &call->table;
  ONEEMB_RETURN_IF_ERROR(
      DecodeRows(call->rules, buffers.index, buffers.rows, table));
  ONEEMB_RETURN_IF_ERROR(DecodeClock(buffers.clock, table));
  ONEEMB_RETURN_IF_ERROR(CheckBuffer("counters", buffers.counters, ffi::U32,
                                     {1, kNumCounters, 2}));
  ONEEMB_RETURN_IF_ERROR(DecodeLayoutVersion(buffers.layout_version, table));
  table->counters = static_cast<uint64_t*>(buffers.counters.untyped_data());
  return ffi::Error::Success();
}

ffi::Error DecodeNewTable(const TableRules& rules, const ffi::AnyBuffer& index,
                          const ffi::AnyBuffer& rows,
                          const ffi::AnyBuffer& clock, int64_t min_capacity,
                          TableView* table) {
  ONEEMB_RETURN_IF_ERROR(DecodeRows(rules, index, rows, table));
  ONEEMB_RETURN_IF_ERROR(DecodeClock(clock, table));
  if (table->capacity < min_capacity) {
    return ffi::Error::InvalidArgument("grow: the new table is smaller");
  }
  return ffi::Error::Success();
}

ffi::Error DecodeNewResidency(const ffi::RemainingRets& results,
                              TableView* table) {
  if (results.empty()) return ffi::Error::Success();
  ffi::ErrorOr<ffi::Result<ffi::AnyBuffer>> slots =
      results.get<ffi::AnyBuffer>(0);
  if (slots.has_error()) return slots.error();
  ONEEMB_RETURN_IF_ERROR(
      CheckBuffer("residency", **slots, ffi::U32, {table->capacity, 2}));
  table->residency = static_cast<SlotResidency*>((*slots)->untyped_data());
  return ffi::Error::Success();
}

ffi::Error DecodeIds(const ffi::AnyBuffer& ids, const ffi::AnyBuffer& table_ids,
                     IdsView* view) {
  ONEEMB_RETURN_IF_ERROR(CheckBuffer("ids", ids, ffi::U32, {-1, -1, -1}));
  const int64_t microbatches = ids.dimensions()[0];
  ONEEMB_RETURN_IF_ERROR(
      CheckBuffer("table_ids", table_ids, ffi::S32, {microbatches, -1}));
  const int64_t words = ids.dimensions()[2];
  const int64_t batch_size = ids.dimensions()[1];
  const int64_t period = table_ids.dimensions()[1];
  if (words < 1 || words > 2) {
    return ffi::Error::InvalidArgument("ids: one or two words an id, not " +
                                       std::to_string(words));
  }
  if (period < 1 || batch_size % period != 0) {
    return ffi::Error::InvalidArgument("table_ids: " + std::to_string(period) +
                                       " do not divide " +
                                       std::to_string(batch_size) + " ids");
  }
  *view = {static_cast<const uint32_t*>(ids.untyped_data()),
           static_cast<int>(words),
           microbatches * batch_size,
           batch_size,
           static_cast<const int32_t*>(table_ids.untyped_data()),
           period};
  return ffi::Error::Success();
}

ffi::Error DecodeRead(const ffi::Dictionary& attributes,
                      const ffi::AnyBuffer& index, const ffi::AnyBuffer& rows,
                      const ffi::AnyBuffer& ids,
                      const ffi::AnyBuffer& table_ids, TableCall* call) {
  ONEEMB_RETURN_IF_ERROR(DecodeRules(attributes, call));
  ONEEMB_RETURN_IF_ERROR(DecodeRows(call->rules, index, rows, &call->table));
  return DecodeIds(ids, table_ids, &call->ids);
}

ffi::Error DecodeLookup(const LookupBuffers& buffers, TableCall* call,
                        LookupOutput* out) {
  const ffi::AnyBuffer& activations = buffers.activations;
  const int64_t n = call->ids.size;
  ONEEMB_RETURN_IF_ERROR(
      DecodeLayoutVersion(buffers.layout_version, &call->table));
  ONEEMB_RETURN_IF_ERROR(
      CheckBuffer("layout_version", buffers.seen_version, ffi::U32, {2}));
  ONEEMB_RETURN_IF_ERROR(DecodeFloatType("acts", activations, &out->type));
  ONEEMB_RETURN_IF_ERROR(CheckBuffer("acts", activations,
                                     activations.element_type(),
                                     {n, call->rules.embedding_dim}));
  ONEEMB_RETURN_IF_ERROR(CheckBuffer("slots", buffers.slots, ffi::S32, {n}));
  ONEEMB_RETURN_IF_ERROR(
      CheckBuffer("counts", buffers.counts, ffi::U32, {kNumLookupCounts}));
  out->activations = activations.untyped_data();
  out->slots = buffers.slots.typed_data<int32_t>();
  out->counts = buffers.counts.typed_data<uint32_t>();
  out->seen_version =
      static_cast<uint64_t*>(buffers.seen_version.untyped_data());
  return ffi::Error::Success();
}

ffi::Error CheckRowsRead(const TableCall& call, const ffi::AnyBuffer& rows,
                         const ffi::AnyBuffer& slots) {
  ONEEMB_RETURN_IF_ERROR(CheckBuffer("out", rows, ffi::U32,
                                     {call.ids.size, call.table.row_words}));
  return CheckBuffer("slots", slots, ffi::S32, {call.ids.size});
}

ffi::Error DecodeWriteRows(const ffi::Dictionary& attributes,
                           const TableBuffers& table,
                           const NewRowBuffers& buffers,
                           const ffi::RemainingRets& results, TableCall* call) {
  ONEEMB_RETURN_IF_ERROR(DecodeTable(attributes, table, call));
  ONEEMB_RETURN_IF_ERROR(CheckBuffer("step", buffers.step, ffi::U32, {1}));
  ONEEMB_RETURN_IF_ERROR(DecodeIds(buffers.ids, buffers.table_ids, &call->ids));
  ONEEMB_RETURN_IF_ERROR(CheckBuffer("values", buffers.values, ffi::U32,
                                     {call->ids.size, call->table.row_words}));
  return CheckInPlace("write_rows",
                      {&table.index, &table.rows, &table.clock, &table.counters,
                       &table.layout_version},
                      results);
}

namespace {

constexpr size_t kBuffersPerBatch = 6;

ffi::Error DecodeBatch(const ffi::RemainingArgs& args, size_t first,
                       int64_t embedding_dim, UpdateBatch* batch,
                       FloatType* gradient_type) {
  ffi::ErrorOr<ffi::AnyBuffer> buffers[kBuffersPerBatch] = {
      args.get<ffi::AnyBuffer>(first),     args.get<ffi::AnyBuffer>(first + 1),
      args.get<ffi::AnyBuffer>(first + 2), args.get<ffi::AnyBuffer>(first + 3),
      args.get<ffi::AnyBuffer>(first + 4), args.get<ffi::AnyBuffer>(first + 5)};
  for (const ffi::ErrorOr<ffi::AnyBuffer>& buffer : buffers) {
    if (buffer.has_error()) return buffer.error();
  }
  ONEEMB_RETURN_IF_ERROR(DecodeIds(*buffers[0], *buffers[1], &batch->ids));
  const int64_t n = batch->ids.batch_size;
  const int64_t microbatches = buffers[0]->dimensions()[0];
  ONEEMB_RETURN_IF_ERROR(
      CheckBuffer("slots", *buffers[2], ffi::S32, {microbatches, n}));
  ONEEMB_RETURN_IF_ERROR(
      CheckBuffer("layout_version", *buffers[3], ffi::U32, {microbatches, 2}));
  ONEEMB_RETURN_IF_ERROR(CheckBuffer("counts", *buffers[4], ffi::U32,
                                     {microbatches, kNumLookupCounts}));
  ONEEMB_RETURN_IF_ERROR(
      DecodeFloatType("gradients", *buffers[5], gradient_type));
  ONEEMB_RETURN_IF_ERROR(CheckBuffer("gradients", *buffers[5],
                                     buffers[5]->element_type(),
                                     {microbatches, n, embedding_dim}));
  batch->slots = static_cast<const int32_t*>(buffers[2]->untyped_data());
  batch->layout_versions =
      static_cast<const uint64_t*>(buffers[3]->untyped_data());
  batch->counts = static_cast<const uint32_t*>(buffers[4]->untyped_data());
  batch->num_microbatches = microbatches;
  batch->gradients = buffers[5]->untyped_data();
  return ffi::Error::Success();
}

ffi::Error DecodeNumLookups(const ffi::Dictionary& attributes,
                            size_t* num_lookups) {
  int32_t number = 0;
  ONEEMB_RETURN_IF_ERROR(Get(attributes, "num_lookups", &number));
  if (number < 0) {
    return ffi::Error::InvalidArgument("attribute num_lookups: " +
                                       std::to_string(number));
  }
  *num_lookups = static_cast<size_t>(number);
  return ffi::Error::Success();
}

ffi::Error DecodeBatches(const ffi::RemainingArgs& args, size_t first,
                         size_t num_batches, int64_t embedding_dim,
                         std::vector<UpdateBatch>* batches,
                         FloatType* gradient_type) {
  if (args.size() < first ||
      (args.size() - first) / kBuffersPerBatch < num_batches) {
    return ffi::Error::InvalidArgument("six buffers a lookup are needed");
  }
  batches->resize(num_batches);
  for (size_t b = 0; b < batches->size(); ++b) {
    FloatType type = FloatType::kFloat32;
    ONEEMB_RETURN_IF_ERROR(DecodeBatch(args, first + b * kBuffersPerBatch,
                                       embedding_dim, &(*batches)[b], &type));
    if (b > 0 && type != *gradient_type) {
      return ffi::Error::InvalidArgument(
          "gradients: all lookups of an update must have one dtype");
    }
    *gradient_type = type;
  }
  return ffi::Error::Success();
}

}  // namespace

ffi::Error DecodeUpdate(const ffi::Dictionary& attributes,
                        const UpdateBuffers& buffers,
                        const ffi::RemainingArgs& lookups, size_t first,
                        int64_t embedding_dim,
                        std::vector<UpdateBatch>* batches,
                        FloatType* gradient_type) {
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
  return DecodeBatches(lookups, first, num_lookups, embedding_dim, batches,
                       gradient_type);
}

ffi::Error DecodeNorm(const ffi::Dictionary& attributes,
                      const ffi::RemainingArgs& lookups, TableCall* call,
                      std::vector<UpdateBatch>* batches,
                      FloatType* gradient_type) {
  ONEEMB_RETURN_IF_ERROR(DecodeRules(attributes, call));
  return DecodeBatches(lookups, 0, lookups.size() / kBuffersPerBatch,
                       call->rules.embedding_dim, batches, gradient_type);
}

}  // namespace oneemb
