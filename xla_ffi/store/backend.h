// What a Store keeps its rows in: one class for each kind of store.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "store/key.h"
#include "store/row_reader.h"
#include "store/segment_scan.h"
#include "store/snapshot.h"
#include "store/status.h"

namespace oneemb {

// What a fetch is for.
enum class Access {
  kTrain,     // a cache keeps what was read
  kEvaluate,  // nothing changes, not even the order in a cache
};

// Figures of a Store; zero where a kind of store has no such thing.
struct StoreStats {
  std::string engine;  // "io_uring", "threads" or "simulated"
  bool direct_io = false;
  int64_t rows = 0;
  int64_t memory_bytes = 0;  // rows, index, metadata and buffers in memory
  int64_t index_bytes = 0;   // of them
  int64_t huge_page_bytes = 0;
  // Host cache.
  int64_t cached_rows = 0;
  int64_t dirty_rows = 0;
  int64_t hits = 0;
  int64_t misses = 0;
  // SSD.
  int64_t segments = 0;
  int64_t slots = 0;             // of sealed segments
  int64_t live_slots = 0;        // of them
  int64_t damaged_segments = 0;  // left alone by compaction
  int64_t put_bytes = 0;         // written for puts
  int64_t moved_bytes = 0;       // written by compaction
  int64_t compactions = 0;
};

// Thread-safe.
class Backend {
 public:
  virtual ~Backend() = default;
  Backend() = default;
  Backend(const Backend&) = delete;
  Backend& operator=(const Backend&) = delete;

  virtual Status Fetch(KeySpan keys, char* rows, uint8_t* found,
                       Access access) = 0;
  virtual Status Put(KeySpan keys, const char* rows) = 0;
  virtual Status Erase(KeySpan keys, uint8_t* erased) = 0;
  virtual int64_t size() const = 0;
  virtual void AddStats(StoreStats* stats) const = 0;
  // All rows of this moment; the store may go on.
  virtual Status Iterate(std::unique_ptr<RowSource>* rows) = 0;
  virtual Status Compact() = 0;
  // Gives the rows of this moment to a snapshot that has begun.
  virtual Status Save(SnapshotWriter* writer) = 0;
  // Replaces all rows by those of the snapshot in `path`. An error changes
  // nothing.
  virtual Status Load(const std::string& path, const Snapshot& snapshot) = 0;
};

}  // namespace oneemb
