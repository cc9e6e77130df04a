// Appends rows to segments, one after the other, at the full rate of the disk.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "store/aligned_buffer.h"
#include "store/env.h"
#include "store/io_queue.h"
#include "store/key.h"
#include "store/segment.h"
#include "store/status.h"

namespace oneemb {

struct SegmentWriterOptions {
  Env* env;
  std::string folder;
  SegmentLayout layout;
  int64_t slots_per_segment;
  int64_t write_bytes;  // of one write
  int write_depth;      // writes in flight
  std::atomic<uint64_t>* next_number;
  // Of one that lives long: grows by what it takes, all of it at the beginning.
  std::atomic<int64_t>* memory_bytes = nullptr;
};

// Rows that lie in consecutive slots of one segment.
struct SlotRun {
  std::shared_ptr<const Segment> segment;
  int64_t first_slot;
  int64_t count;
};

// A segment that gets no more rows.
struct ClosedSegment {
  std::shared_ptr<const Segment> segment;
  int64_t num_slots;
  // Ok: sealed, complete and on the disk. Else: what was appended before the
  // error can be read, but will not survive this process.
  Status sealed;
};

// For one thread at a time.
class SegmentWriter {
 public:
  explicit SegmentWriter(SegmentWriterOptions options);
  ~SegmentWriter() = default;
  SegmentWriter(const SegmentWriter&) = delete;
  SegmentWriter& operator=(const SegmentWriter&) = delete;

  // Writes rows, in order; runs cover them in order. When it returns ok they
  // can be read from their slots; they are on the disk once their segment is
  // sealed. On an error no row counts as written: the segment of a failed write
  // is closed, and the next call begins a new one.
  // `meanwhile` does a piece of other work and says whether there is more: it
  // is called while writes are underway, after each that was started, and at
  // the end until there is none. It does not throw.
  using Meanwhile = std::function<bool()>;
  Status Append(KeySpan keys, const char* rows, std::vector<SlotRun>* runs,
                const Meanwhile& meanwhile = NothingElse);

  // Seals the open segment, if there is one.
  void Close();
  // Forgets the open segment; its file stays.
  void Abandon();

  // The segment that was closed first, or null; it stays until it is popped.
  const ClosedSegment* FirstClosed() const {
    return closed_.empty() ? nullptr : &closed_.front();
  }
  void PopClosed() { closed_.erase(closed_.begin()); }

  int64_t bytes_written() const { return bytes_written_; }
  // Of buffers and keys, once it has written.
  static int64_t MemoryBytes(const SegmentWriterOptions& options);
  // Whether the newest segment is written past the page cache.
  bool direct_io() const { return direct_io_; }

 private:
  static bool NothingElse() { return false; }

  struct Buffer {
    AlignedBuffer memory;
    Transfer transfer;
    bool in_flight = false;
  };

  Status Prepare();
  Status OpenNext();
  void StartRun(KeySpan keys, const char* rows, const Meanwhile& meanwhile,
                int64_t* taken);
  void PutRecords(KeySpan keys, const char* rows);
  void PutFrame(KeySpan keys, const char* rows, int64_t f, char* frame) const;
  void PutBytes(const char* data, int64_t bytes);
  void StartWrite();
  void FinishOne();
  char* FreeBuffer();
  Status Drain();
  Status Seal();
  Status WriteKeysAndTrailer();
  void CloseWith(Status sealed);

  const SegmentWriterOptions options_;
  std::vector<Buffer> buffers_;
  std::unique_ptr<IoQueue> queue_;  // waits for what is in flight
  int64_t capacity_ = 0;            // of a buffer
  size_t current_ = 0;              // the buffer being filled
  int64_t fill_ = 0;                // bytes in it
  int64_t offset_ = 0;              // where it goes in the file
  Status write_status_;             // the first failure since the last Drain

  std::shared_ptr<const Segment> segment_;  // the open one, or null
  int64_t next_slot_ = 0;
  std::vector<uint64_t> ids_;
  std::vector<uint16_t> tables_;
  std::vector<ClosedSegment> closed_;
  int64_t bytes_written_ = 0;
  bool direct_io_ = false;
};

}  // namespace oneemb
