// The handlers of cached tables. What a Store has to say is said on the host,
// at a point of the stream (cuda/stream_call.h): what moves rows meets the
// stream, what asks makes it wait, and what is for later is told.
#include <algorithm>
#include <new>
#include <vector>

#include "cuda/cached_operation_ffi.h"
#include "cuda/ffi_util.h"
#include "cuda/handlers.h"
#include "cuda/lookup.h"
#include "cuda/table_ops.h"
#include "cuda/update.h"
#include "ffi/decode_cached_ffi.h"
#include "tier/tier_api.h"

namespace oneemb::gpu {

namespace ffi = xla::ffi;

namespace {

// Of the library that has the Stores; set when both are loaded.
const TierApi* tier_api = nullptr;

ffi::Error Begin(cudaStream_t stream, const CachedCall& cached,
                 CachedOperation* operation) {
  if (tier_api == nullptr) {
    return ffi::Error::Internal("the Stores of cached tables are not known");
  }
  return ToFfi("stream", operation->Begin(stream, cached,
                                          tier_api->find(cached.store_name)));
}

// The workspace of a call, which has one more result for it, and the tier's
// part of it; `more` bytes follow, at *rest.
ffi::Error TakeSpace(const CachedCall& cached,
                     const ffi::RemainingRets& results, int64_t more,
                     CachedOperation* operation, void** rest = nullptr) {
  const int64_t capacity = cached.call.table.capacity;
  const int64_t n = cached.call.ids.size;
  void* base = nullptr;
  ONEEMB_RETURN_IF_ERROR(DecodeWorkspace(
      results, TierBytes(cached.call.rules, capacity, n) + more, &base));
  Workspace workspace(base);
  operation->UseSpace(
      TakeTierSpace(cached.call.rules, capacity, n, &workspace));
  if (rest != nullptr) *rest = workspace.Take<char>(more);
  return ffi::Error::Success();
}

// What the host can fail at without an error of the device is a lack of memory.
bool OrNoMemory(const GpuTier& tier, bool done) {
  if (!done && tier.error() == cudaSuccess) throw std::bad_alloc();
  return done;
}

// What every call with a batch of ids begins with.
ffi::Error BeginBatch(cudaStream_t stream, const ffi::RemainingArgs& args,
                      const ffi::Dictionary& attributes, ffi::RunId run,
                      size_t more, CachedCall* cached,
                      CachedOperation* operation) {
  ONEEMB_RETURN_IF_ERROR(
      DecodeCachedBatch(args, attributes, run, more, cached));
  ONEEMB_RETURN_IF_ERROR(CheckPositions(cached->call.ids.size));
  return Begin(stream, *cached, operation);
}

ffi::Error StageHandler(cudaStream_t stream, ffi::RunId run,
                        ffi::RemainingArgs args, ffi::RemainingRets results,
                        ffi::Dictionary attributes) {
  CachedCall cached;
  CachedOperation operation;
  ONEEMB_RETURN_IF_ERROR(
      BeginBatch(stream, args, attributes, run, 0, &cached, &operation));
  ONEEMB_RETURN_IF_ERROR(CheckCachedInPlace("stage", cached, results));
  ONEEMB_RETURN_IF_ERROR(CheckRoom(cached.call));
  ONEEMB_RETURN_IF_ERROR(TakeSpace(cached, results, 0, &operation));
  return ToFfi("stage", operation.MeetMissing(
                            [](GpuTier* tier, const TieredTable& t, Board*) {
                              return OrNoMemory(*tier, tier_api->stage(t));
                            }));
}

ffi::Error PrefetchHandler(cudaStream_t stream, ffi::RunId run,
                           ffi::RemainingArgs args, ffi::RemainingRets results,
                           ffi::Dictionary attributes) {
  CachedCall cached;
  CachedOperation operation;
  ONEEMB_RETURN_IF_ERROR(
      BeginBatch(stream, args, attributes, run, 0, &cached, &operation));
  ONEEMB_RETURN_IF_ERROR(CheckInPlace(
      "prefetch", {&cached.buffers[2], &cached.buffers[5]}, results));
  ONEEMB_RETURN_IF_ERROR(TakeSpace(cached, results, 0, &operation));
  return ToFfi("prefetch", operation.TellMissing(
                               [](GpuTier*, const TieredTable& t, Board*) {
                                 return tier_api->prefetch(t);
                               }));
}

// Whether an update may go on, as oneemb::UpdateCached has it. One with damaged
// contexts does, to count itself.
bool JudgeUpdate(const TieredTable& table, Board* board) {
  if (board->apply == 0) return false;
  const bool sound = board->active != 0 && board->damaged == 0;
  if (!tier_api->may_update(table, sound && board->unstaged == 0)) return false;
  if (board->active == 0) ++board->counters[kBadLearningRates];
  if (!sound) return board->active != 0;
  // Activations were NaN, and all gradients of the batch may be.
  board->counters[kUnstaged] += board->unstaged;
  return board->unstaged == 0;
}

ffi::Error UpdateCachedHandler(cudaStream_t stream, ffi::RunId run,
                               ffi::RemainingArgs args,
                               ffi::RemainingRets results,
                               ffi::Dictionary attributes) {
  // Behind the table: step, learning_rate, grad_scale, apply, and the lookups.
  constexpr size_t kFirst = kCachedBuffers;
  CachedCall cached;
  CachedOperation operation;
  UpdateOperands operands{};
  ONEEMB_RETURN_IF_ERROR(DecodeCached(args, attributes, run, &cached));
  const std::vector<ffi::AnyBuffer>& b = cached.buffers;
  if (b.size() < kFirst + 4) {
    return ffi::Error::InvalidArgument("wrong number of arguments");
  }
  const TableRules& rules = cached.call.rules;
  ONEEMB_RETURN_IF_ERROR(DecodeUpdate(
      attributes,
      {b[kFirst], b[5], b[kFirst + 1], b[kFirst + 2], b[kFirst + 3]}, args,
      kFirst + 4, rules.embedding_dim, &operands.batches,
      &operands.gradient_type));
  operands.step = b[kFirst].typed_data<uint32_t>();
  operands.generation = cached.generation;
  operands.learning_rate = b[kFirst + 1].typed_data<float>();
  operands.grad_scale = b[kFirst + 2].typed_data<float>();
  operands.apply = b[kFirst + 3].typed_data<bool>();
  ONEEMB_RETURN_IF_ERROR(
      CheckCachedInPlace("update", cached, results, &b[kFirst]));
  int64_t n = 0;
  for (const UpdateBatch& batch : operands.batches) n += batch.ids.size;
  ONEEMB_RETURN_IF_ERROR(CheckPositions(n));
  void* workspace = nullptr;
  ONEEMB_RETURN_IF_ERROR(DecodeWorkspace(
      results,
      UpdateSpace(rules, cached.call.table.capacity, n,
                  static_cast<int64_t>(operands.batches.size())),
      &workspace));
  ONEEMB_RETURN_IF_ERROR(Begin(stream, cached, &operation));
  const auto judge = [&](PlaceState* place) {
    operation.places().place = place;
    operation.places().apply = operands.apply;
    return operation.Ask(true,
                         [](GpuTier*, const TieredTable& t, Board* board) {
                           return JudgeUpdate(t, board);
                         });
  };
  return ToFfi("update", Update(stream, cached.call.table, rules, operands,
                                workspace, judge));
}

ffi::Error LookupCachedHandler(cudaStream_t stream, ffi::RunId run,
                               ffi::RemainingArgs args,
                               ffi::Result<ffi::AnyBuffer> activations,
                               ffi::Result<ffi::AnyBuffer> slots,
                               ffi::Result<ffi::AnyBuffer> seen_version,
                               ffi::Result<ffi::AnyBuffer> counts,
                               ffi::Result<ffi::AnyBuffer> workspace,
                               ffi::Dictionary attributes) {
  CachedCall cached;
  CachedOperation operation;
  LookupOutput out{};
  ONEEMB_RETURN_IF_ERROR(
      BeginBatch(stream, args, attributes, run, 0, &cached, &operation));
  ONEEMB_RETURN_IF_ERROR(DecodeLookup(
      {cached.buffers[4], *activations, *slots, *seen_version, *counts},
      &cached.call, &out));
  ONEEMB_RETURN_IF_ERROR(CheckWorkspace(
      *workspace, LookupSpace(cached.call.rules, cached.call.ids.size)));
  LookupHooks hooks;
  hooks.before_find = [&](LookupState* state) {
    operation.places().lookup = state;
    return operation.Ask(false, [](GpuTier*, const TieredTable& t, Board*) {
      return tier_api->may_read(t);
    });
  };
  hooks.after_find = [&](const LookupState* state) {
    operation.places().lookup = nullptr;
    operation.places().looked_up = state;
    return operation.AskToCount(
        state, [](GpuTier*, const TieredTable& t, Board* board) {
          tier_api->count_lookup(t, board->stale != 0, board->unstaged);
          return true;
        });
  };
  return ToFfi("lookup",
               Lookup(stream, cached.call.table, cached.call.rules,
                      cached.call.ids, out, workspace->untyped_data(), &hooks));
}

// A batch in host memory, for as long as the tier lasts.
bool IdsToHost(GpuTier* tier, const IdsView& ids, IdsView* host) {
  const int64_t batches = ids.batch_size == 0 ? 0 : ids.size / ids.batch_size;
  *host = ids;
  host->words = tier->ToHost(ids.words, ids.size * ids.words_per_id);
  host->table_ids = tier->ToHost(ids.table_ids, batches * ids.table_period);
  return host->words != nullptr && host->table_ids != nullptr;
}

// Rows that the device tier lacks, from the Store into `rows` and `slots`.
bool ReadRest(GpuTier* tier, const TieredTable& table, const TableCall& call,
              uint32_t* rows, int32_t* slots) {
  const IdsView& ids = call.ids;
  IdsView host{};
  const int32_t* const found_slots = tier->ToHost(slots, ids.size);
  if (found_slots == nullptr || !IdsToHost(tier, ids, &host)) return false;
  std::vector<Key> keys;
  std::vector<int32_t> positions;
  IdCursor id(host, 0);
  for (int64_t i = 0; i < ids.size; ++i, id.Next()) {
    if (found_slots[i] != kSlotMissing) continue;
    keys.push_back(call.rules.keys.MakeKey(id.id(), id.table()));
    positions.push_back(static_cast<int32_t>(i));
  }
  if (keys.empty()) return true;
  TakenRows below;
  tier_api->read_below(table, keys, &below);
  auto* const new_slots = tier->Pinned<int32_t>(ids.size);
  if (new_slots == nullptr) return false;
  std::copy_n(found_slots, ids.size, new_slots);
  for (size_t i = 0; i < keys.size(); ++i) {
    if (below.list().rows[i] != nullptr) new_slots[positions[i]] = 0;
  }
  return tier->Copy(new_slots, ids.size, slots) &&
         tier->PutRows(below.list().rows, positions, rows);
}

ffi::Error ReadCachedRowsHandler(cudaStream_t stream, ffi::RunId run,
                                 ffi::RemainingArgs args,
                                 ffi::RemainingRets results,
                                 ffi::Dictionary attributes) {
  CachedCall cached;
  CachedOperation operation;
  ONEEMB_RETURN_IF_ERROR(
      BeginBatch(stream, args, attributes, run, 0, &cached, &operation));
  auto out = results.get<ffi::AnyBuffer>(0);
  auto out_slots = results.get<ffi::AnyBuffer>(1);
  if (out.has_error()) return out.error();
  if (out_slots.has_error()) return out_slots.error();
  const TableCall& call = cached.call;
  ONEEMB_RETURN_IF_ERROR(CheckRowsRead(call, **out, **out_slots));
  void* workspace = nullptr;
  ONEEMB_RETURN_IF_ERROR(TakeSpace(cached, results,
                                   LookupSpace(call.rules, call.ids.size),
                                   &operation, &workspace));
  auto* const rows = (*out)->typed_data<uint32_t>();
  auto* const slots = (*out_slots)->typed_data<int32_t>();
  ONEEMB_RETURN_IF_ERROR(
      ToFfi("read_rows", ReadRows(stream, call.table, call.rules, call.ids,
                                  rows, slots, workspace)));
  return ToFfi(
      "read_rows",
      operation.Meet(false, [&](GpuTier* tier, const TieredTable& t, Board*) {
        return ReadRest(tier, t, call, rows, slots);
      }));
}

ffi::Error WriteCachedRowsHandler(cudaStream_t stream, ffi::RunId run,
                                  ffi::RemainingArgs args,
                                  ffi::RemainingRets results,
                                  ffi::Dictionary attributes) {
  CachedCall cached;
  CachedOperation operation;
  void* rest = nullptr;
  ONEEMB_RETURN_IF_ERROR(
      BeginBatch(stream, args, attributes, run, 1, &cached, &operation));
  const TableCall& call = cached.call;
  const ffi::AnyBuffer& values = cached.buffers.back();
  ONEEMB_RETURN_IF_ERROR(CheckBuffer("values", values, ffi::U32,
                                     {call.ids.size, call.table.row_words}));
  ONEEMB_RETURN_IF_ERROR(CheckCachedInPlace("write_rows", cached, results));
  ONEEMB_RETURN_IF_ERROR(CheckRoom(call));
  ONEEMB_RETURN_IF_ERROR(TakeSpace(
      cached, results,
      kFlagBytes +
          WriteRowsSpace(call.rules, call.table.capacity, call.ids.size),
      &operation, &rest));
  auto* const apply = static_cast<bool*>(rest);
  void* const space = static_cast<char*>(rest) + kFlagBytes;
  operation.places().verdict = apply;
  const cudaError_t error = operation.MeetMissing(
      [](GpuTier* tier, const TieredTable& t, Board* board) {
        const uint32_t before = board->generation;
        if (!OrNoMemory(*tier, tier_api->stage(t))) return false;
        if (board->generation == before) return false;  // stale, and counted
        if (!tier_api->may_write(t)) return false;
        ++board->generation;
        return true;
      });
  ONEEMB_RETURN_IF_ERROR(ToFfi("write_rows", error));
  return ToFfi("write_rows",
               WriteRows(stream, call.table, call.rules, call.ids,
                         values.typed_data<uint32_t>(), nullptr, space, apply));
}

ffi::Error WriteDownHandler(cudaStream_t stream, ffi::RunId run,
                            ffi::RemainingArgs args, ffi::RemainingRets results,
                            ffi::Dictionary attributes) {
  CachedCall cached;
  CachedOperation operation;
  ONEEMB_RETURN_IF_ERROR(DecodeCached(args, attributes, run, &cached));
  auto written = results.get<ffi::AnyBuffer>(0);
  if (written.has_error()) return written.error();
  ONEEMB_RETURN_IF_ERROR(CheckBuffer("written", **written, ffi::PRED, {1}));
  ONEEMB_RETURN_IF_ERROR(Begin(stream, cached, &operation));
  ONEEMB_RETURN_IF_ERROR(TakeSpace(cached, results, 0, &operation));
  operation.places().verdict = (*written)->typed_data<bool>();
  return ToFfi(
      "write_down",
      operation.Meet(false, [](GpuTier*, const TieredTable& t, Board*) {
        return t.store != nullptr && tier_api->write_down(t);
      }));
}

ffi::Error FlushHandler(cudaStream_t stream, ffi::RunId run,
                        ffi::RemainingArgs args, ffi::RemainingRets results,
                        ffi::Dictionary attributes) {
  CachedCall cached;
  CachedOperation operation;
  void* rest = nullptr;
  ONEEMB_RETURN_IF_ERROR(DecodeCached(args, attributes, run, &cached));
  const TableView& table = cached.call.table;
  auto residency = results.get<ffi::AnyBuffer>(0);
  auto generation = results.get<ffi::AnyBuffer>(1);
  if (residency.has_error()) return residency.error();
  if (generation.has_error()) return generation.error();
  ONEEMB_RETURN_IF_ERROR(
      CheckBuffer("residency", **residency, ffi::U32, {table.capacity, 2}));
  ONEEMB_RETURN_IF_ERROR(
      CheckBuffer("generation", **generation, ffi::U32, {1}));
  ONEEMB_RETURN_IF_ERROR(Begin(stream, cached, &operation));
  ONEEMB_RETURN_IF_ERROR(
      TakeSpace(cached, results, kFlagBytes, &operation, &rest));
  auto* const flushed = static_cast<bool*>(rest);
  auto* const marks = static_cast<SlotResidency*>((*residency)->untyped_data());
  operation.places().verdict = flushed;
  ONEEMB_RETURN_IF_ERROR(
      ToFfi("flush",
            cudaMemcpyAsync(marks, table.residency, (*residency)->size_bytes(),
                            cudaMemcpyDeviceToDevice, stream)));
  ONEEMB_RETURN_IF_ERROR(
      ToFfi("flush",
            operation.Meet(false, [](GpuTier*, const TieredTable& t, Board*) {
              return t.store != nullptr && tier_api->flush(t);
            })));
  return ToFfi("flush", MarkClean(stream, marks, table.capacity, flushed,
                                  cached.generation,
                                  (*generation)->typed_data<uint32_t>()));
}

}  // namespace

void OneembCudaSetTierApi(const void* api) {
  tier_api = static_cast<const TierApi*>(api);
}

// They wait for the host, which a CUDA graph cannot be told.
ONEEMB_DEFINE_HANDLER(OneembCudaStage, StageHandler);
ONEEMB_DEFINE_HANDLER(OneembCudaPrefetch, PrefetchHandler);
ONEEMB_DEFINE_HANDLER(OneembCudaUpdateCached, UpdateCachedHandler);
ONEEMB_DEFINE_HANDLER(OneembCudaLookupCached, LookupCachedHandler);
ONEEMB_DEFINE_HANDLER(OneembCudaReadCachedRows, ReadCachedRowsHandler);
ONEEMB_DEFINE_HANDLER(OneembCudaWriteCachedRows, WriteCachedRowsHandler);
ONEEMB_DEFINE_HANDLER(OneembCudaWriteDown, WriteDownHandler);
ONEEMB_DEFINE_HANDLER(OneembCudaFlush, FlushHandler);

}  // namespace oneemb::gpu
