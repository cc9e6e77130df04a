// Reads single rows from segments, many at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "store/aligned_buffer.h"
#include "store/env.h"
#include "store/io_queue.h"
#include "store/key.h"
#include "store/segment.h"
#include "store/status.h"

namespace oneemb {

// What became of one key of a fetch.
constexpr uint8_t kRowAbsent = 0;
constexpr uint8_t kRowFound = 1;
constexpr uint8_t kRowFailed = 2;  // it exists, and could not be read

// One row to read.
struct RowRead {
  const Segment* segment;
  int64_t slot;
  int64_t item;  // its place in the caller's batch
};

// For one thread at a time.
class RowReader {
 public:
  // Up to `depth` reads are in flight, as far as 16 MiB hold them. They begin
  // and end at multiples of block_bytes, 512 or 4096. Rows have row_bytes.
  static Status Open(Env* env, int depth, int64_t block_bytes,
                     int64_t row_bytes, std::unique_ptr<RowReader>* reader);

  // Reads all rows; the reads must be sorted by segment and slot.
  // Row i goes to rows + item * row_bytes, and found[item] becomes kRowFound or
  // kRowFailed, in which case the row is left as it was. Checks that each row
  // is whole and has the key that was asked for. Returns the first failure.
  Status Read(const std::vector<RowRead>& reads, KeySpan keys, char* rows,
              uint8_t* found);

  // Of a reader of this depth.
  static int64_t MemoryBytes(int depth, int64_t row_bytes);

 private:
  // One transfer, and the rows that it brings.
  struct Slot {
    char* data = nullptr;
    Transfer transfer;
    size_t begin = 0;
    size_t end = 0;
  };
  struct Batch;

  RowReader(int64_t num_slots, int64_t block_bytes);

  size_t Plan(const Batch& batch, size_t begin, Slot* slot) const;
  void Finish(const Batch& batch);
  void Deliver(const Batch& batch, Slot* slot);
  Status Unpack(const Batch& batch, const Slot& slot,
                const RowRead& read) const;
  Status ReadAgain(const Batch& batch, const RowRead& read);

  const int64_t block_bytes_;
  AlignedBuffer memory_;  // of all slots
  AlignedBuffer again_memory_;
  Slot again_slot_;
  std::vector<Slot> slots_;
  std::vector<Slot*> free_;
  // Last: they wait for what is in flight.
  std::unique_ptr<IoQueue> queue_;
  std::unique_ptr<IoQueue> again_;  // for second attempts, one by one
};

}  // namespace oneemb
