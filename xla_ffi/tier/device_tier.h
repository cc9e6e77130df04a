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
#include "core/residency.h"
#include "store/buffer_source.h"

namespace oneemb {

class TableStore;  // store/table_store.h

// A slot in use.
struct SlotEntry {
  int32_t slot;
  Key key;
  SlotState state;
};

// Keys on their way into slots, with their rows in memory(). A slot is clean
// then; one whose row is null is reserved.
struct Admissions {
  int64_t count;
  const Key* keys;
  const int32_t* slots;
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

  // Where rows lie on the host on their way to the device, or from there.
  virtual BufferSource* memory() = 0;

  // Tells apart the batches that a table may be staged for.
  virtual bool Digest(uint64_t* digest) = 0;

  // The keys of the batch that are not there, each once, in order of first
  // occurrence.
  virtual bool FindMissing(std::vector<Key>* missing) = 0;
  // The same, and sets the clock of those that are there to `now`; how many
  // keys that are, and the batch's digest.
  virtual bool FindMissingAndTouch(uint32_t now, std::vector<Key>* missing,
                                   int64_t* resident, uint64_t* digest) = 0;

  // Up to `count` slots in use whose clock is not `now`, the longest unused
  // ones, ties by slot; in order of slots. Ages from 65,535 on may tie.
  virtual bool ChooseVictims(uint32_t now, int64_t count, Victims which,
                             std::vector<SlotEntry>* victims) = 0;
  // The same with kAny, for a table as it goes from batch to batch: `queue`
  // may keep what one look finds beyond what it was for. It begins empty; it
  // is cleared when victims were not evicted.
  virtual bool TakeVictims(uint32_t now, int64_t count,
                           std::vector<TierVictim>* queue,
                           std::vector<SlotEntry>* victims) = 0;
  // Up to `most` slots from *cursor on whose row is newer than the Store's, in
  // order; none at the end. Moves *cursor, which begins as 0.
  virtual bool FindDirty(int64_t* cursor, int64_t most,
                         std::vector<SlotEntry>* dirty) = 0;
  // Copies the rows of slots one after another, to memory().
  virtual bool ReadRows(const std::vector<int32_t>& slots, char* rows) = 0;

  // Takes the keys out of slots.
  virtual bool Evict(const std::vector<SlotEntry>& victims) = 0;
  // Gives slots that are free to keys that are not there, in order of slots.
  virtual bool Admit(const Admissions& admissions, uint32_t now) = 0;

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
