// The device tier of a cached table while one operation works on it and on one
// batch of ids, wherever its arrays are. What is to be done to it is decided in
// tier/cached_table.h; here is how it is done on one kind of device.
//
// Functions return false when there is no memory to work in, or the device
// fails; then the operation ends.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/bucket.h"
#include "core/counters.h"
#include "core/residency.h"
#include "store/buffer_source.h"
#include "store/key.h"
#include "store/source_vector.h"
#include "store/taken_rows.h"

namespace oneemb {

class AlignedBuffer;  // store/aligned_buffer.h
class Arrival;        // store/arrival.h
class TableStore;     // store/table_store.h

// A slot in use.
struct SlotEntry {
  int32_t slot;
  Key key;
};

// Keys that are not in the tier: in memory of its own, as long as it lasts, or
// in what is kept here.
struct MissingKeys {
  Key* keys = nullptr;  // null until they are asked for: ReadMissing
  int64_t count = 0;
  KeyFingerprint fingerprint;  // if it is known
  std::vector<Key> memory;

  KeySpan span() const { return {keys, count}; }
  void UseMemory() {
    keys = memory.data();
    count = static_cast<int64_t>(memory.size());
  }
};

// Slots that are to change their keys, in order.
struct VictimList {
  int64_t count = 0;
  int64_t reserved = 0;  // those of them that have no row yet
  // Keys of those whose row is newer than the Store's. Until they are evicted a
  // device may not know yet which ones that are, and have room for more.
  SourceVector<Key> dirty;
  // Of their rows, where these were put; null when they are there.
  std::shared_ptr<Arrival> arriving;
  // Where a tier on the host keeps them.
  std::vector<int32_t> slots;
  std::vector<int32_t> dirty_slots;

  // Empty again, but for the memory.
  void Clear() {
    count = 0;
    reserved = 0;
    dirty.clear();
    arriving.reset();
    slots.clear();
    dirty_slots.clear();
  }
};

// Keys on their way into slots, as far as there are slots: those of victims,
// and behind them such that nobody has used, from `first_unused` on. Rows and
// their list are in memory(), or nearer: a slot is clean then; one whose row is
// null is reserved.
struct Exchange {
  // Where those of dirty victims go; empty: nowhere. What turns out to be much
  // too large is exchanged for another.
  AlignedBuffer* dirty_rows;
  int64_t first_unused;
  int64_t num_unused;
  // Without data, the missing keys as the tier has found them.
  KeySpan keys;
  const char* const* rows;
};

class DeviceTier {
 public:
  // `counters` and `generation` are the table's, in host memory meanwhile.
  DeviceTier(int64_t capacity, int64_t row_words, uint64_t* counters,
             uint32_t* generation)
      : capacity_(capacity),
        row_bytes_(row_words * int64_t{sizeof(uint32_t)}),
        counters_(counters),
        generation_(generation) {}
  virtual ~DeviceTier() = default;
  DeviceTier(const DeviceTier&) = delete;
  DeviceTier& operator=(const DeviceTier&) = delete;

  int64_t capacity() const { return capacity_; }
  int64_t row_bytes() const { return row_bytes_; }
  uint64_t* counters() const { return counters_; }
  uint32_t* generation() const { return generation_; }
  // As TableView::slots_used, of counters on the host.
  int64_t slots_used() const {
    const uint64_t used = counters_[kSlotsUsed];
    return used < static_cast<uint64_t>(capacity_) ? static_cast<int64_t>(used)
                                                   : capacity_;
  }

  // Where rows lie on the host on their way to the device, or from there.
  virtual BufferSource* memory() = 0;

  // Tells apart the batches that a table may be staged for.
  virtual bool Digest(uint64_t* digest) = 0;

  // The keys of the batch that are not there, each once, in order of first
  // occurrence. Sets the clock of those that are there to `now`. The batch's
  // digest.
  virtual bool FindMissingAndTouch(uint32_t now, MissingKeys* missing,
                                   uint64_t* digest) = 0;
  // The same keys of a batch that is to come: the clock of those that are there
  // becomes AnnouncedClock (core/residency.h), unless it is later.
  virtual bool FindMissingAhead(MissingKeys* missing) = 0;
  // The keys themselves, for the host to see.
  virtual bool ReadMissing(MissingKeys* /*missing*/) { return true; }
  // How many keys were there.
  virtual bool CountTouched(int64_t* resident) = 0;

  // Victims are likely to be wanted, as ChooseVictims has them with kAny: a
  // device that works by itself may begin to look for them.
  virtual bool ExpectVictims(uint32_t /*now*/, int64_t /*count*/) {
    return true;
  }
  // Up to `count` slots in use whose clock is not `now`, the longest unused
  // ones, ties by slot. Ages from 65,535 on may tie.
  virtual bool ChooseVictims(uint32_t now, int64_t count, Victims which,
                             VictimList* victims) = 0;
  // The same with kAny, for a table as it goes from batch to batch: `queue`
  // may keep what one look finds beyond what it was for. It begins empty; it
  // is cleared when victims were not evicted.
  virtual bool TakeVictims(uint32_t now, int64_t count,
                           std::vector<TierVictim>* queue,
                           VictimList* victims) = 0;
  // Up to `most` slots from *cursor on whose row is newer than the Store's, in
  // order; none at the end. Moves *cursor, which begins as 0.
  virtual bool FindDirty(int64_t* cursor, int64_t most,
                         std::vector<SlotEntry>* dirty) = 0;
  // Copies the rows of slots one after another, to memory().
  virtual bool ReadRows(const std::vector<int32_t>& slots, char* rows) = 0;

  // Gives slots to keys that are not there, whose clock becomes `now`. The
  // victims are those that were chosen last, of which all is known then.
  virtual bool Admit(const Exchange& exchange, uint32_t now,
                     VictimList* victims) = 0;

  // The rows that were admitted are not needed any more: the tier lets go of
  // them when it is done with them.
  virtual void LetGo(TakenRows* rows) { rows->Clear(); }

  // The batch is staged, of a table that is in order now; whether no slot is
  // reserved.
  virtual void EndStage(bool none_reserved) = 0;

 private:
  const int64_t capacity_;
  const int64_t row_bytes_;
  uint64_t* const counters_;
  uint32_t* const generation_;
};

// A table and the batch of an operation, as a device has them, and its Store.
struct TieredTable {
  DeviceTier* tier;
  std::shared_ptr<TableStore> store;  // null when the table's name has none
  uint64_t nonce;
  int64_t run;  // the execution of a compiled program that this is part of
};

}  // namespace oneemb
