// Rows on SSD: an append-only log in segments, and in memory what lives where.
//
// A put writes rows to the end of the log and then changes the index; nothing
// is ever overwritten in place. What is put is readable at once, and survives
// this process when a snapshot that holds it has been saved (snapshot.h).
// Compaction moves what lives out of segments that are mostly dead.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "store/compaction.h"
#include "store/env.h"
#include "store/key.h"
#include "store/log_writer.h"
#include "store/mutex.h"
#include "store/row_reader.h"
#include "store/segment_map.h"
#include "store/segment_scan.h"
#include "store/segment_writer.h"
#include "store/status.h"

namespace oneemb {

enum class CompactionMode {
  kBackground,  // by a thread of its own; puts help when it falls behind
  kInline,      // by the calls that make it necessary; for tests
  kManual,      // by Compact() alone
};

struct SsdTierOptions {
  int64_t row_bytes = 0;
  int64_t segment_bytes = int64_t{256} << 20;
  // Reads begin and end at multiples of it: 512 or 4096.
  int64_t block_bytes = kBlockBytes;
  // More than a disk needs: where a program computes on all processors, the
  // thread that reads waits for one of them now and then, and the disk must
  // not.
  int read_depth = 384;
  // Fetches that read at a time; more wait for one of them. Each has as many of
  // read_depth reads in flight as 16 MiB hold: 512 of small rows.
  int readers = 4;
  int64_t write_bytes = int64_t{1} << 20;
  // Enough to keep a disk busy. Buffers of 16 MiB were a quarter slower than of
  // 4: they do not stay in the processor's cache until the disk takes them.
  int write_depth = 4;
  // A bound on index, bitmaps and buffers together; 0: none. The buffers of all
  // readers and of both writers are set aside from it at Open, used or not.
  // What a call needs for its own batch (some 60 bytes a key) comes on top, and
  // so do iterations (1 MiB each) and the keys of a segment while it is loaded.
  int64_t memory_budget_bytes = 0;
  CompactionMode compaction = CompactionMode::kBackground;
  // Disk space is rows / utilisation.
  CompactionPolicy policy;
  // Compaction writes at most this many bytes for each byte put. A steady load
  // of overwrites needs 1 at a utilisation of 0.7, 3 at 0.85.
  double compaction_share = 2;
  // And this share of a segment, 1 MiB, for each save, which may leave a small
  // segment behind however little was put.
  double compaction_share_of_save = 1.0 / 256;
};

// Where the rows of a batch were at one moment. What lies there never changes,
// and stays readable while this lives.
struct LocatedRows {
  std::shared_ptr<const SegmentTable> table;
  std::vector<RowRead> reads;  // by segment and slot; absent rows have none
};

// The rows of one moment. For one thread at a time; the tier may go on, and
// even be destroyed.
class RowIterator final : public RowSource {
 public:
  RowIterator(std::shared_ptr<Env> env, std::vector<SegmentView> views)
      : env_(std::move(env)), views_(std::move(views)) {}

  // The next rows, about 1 MiB of file at a time, in no order; an empty
  // batch is the end.
  Status Next(RowBatch* batch) override;

 private:
  const std::shared_ptr<Env> env_;
  std::vector<SegmentView> views_;
  size_t next_ = 0;
  std::unique_ptr<SegmentScan> scan_;
};

// Thread-safe.
class SsdTier {
 public:
  struct Stats {
    SegmentMap::Totals map;
    int64_t rows = 0;
    int64_t put_bytes = 0;     // written by puts, padding included
    int64_t moved_bytes = 0;   // written by compaction
    int64_t compactions = 0;   // segments emptied or found empty
    int64_t memory_bytes = 0;  // index, bitmaps and buffers
    bool direct_io = false;    // of the newest segment
  };

  // Keeps its segments in `folder`, which exists and is empty.
  static Status Open(std::shared_ptr<Env> env, const std::string& folder,
                     const SsdTierOptions& options,
                     std::unique_ptr<SsdTier>* tier);
  ~SsdTier();
  SsdTier(const SsdTier&) = delete;
  SsdTier& operator=(const SsdTier&) = delete;

  // found[i] is kRowAbsent, kRowFound or kRowFailed; row i is written only when
  // found. The status is the first failure's; the other rows are good.
  Status Fetch(KeySpan keys, char* rows, uint8_t* found);
  // The same in two steps: where the rows are, and reading them from there.
  // Nothing that happens in between changes what is read.
  void Locate(KeySpan keys, LocatedRows* located) const;
  Status Read(const LocatedRows& located, KeySpan keys, char* rows,
              uint8_t* found);
  // current[i] = 1 where row i, located then, still is the row of its key.
  void CheckCurrent(const LocatedRows& located, KeySpan keys,
                    uint8_t* current) const;
  // All rows or none. Of a key that occurs twice the later row counts.
  Status Put(KeySpan keys, const char* rows);
  void Erase(KeySpan keys, uint8_t* erased);
  void Contains(KeySpan keys, uint8_t* found) const;
  int64_t size() const { return map()->size(); }
  Stats stats() const;

  std::unique_ptr<RowIterator> Iterate() const;

  // Compacts until there is nothing left to gain, each segment once at most.
  Status Compact();

  // Seals what is open, and hands the segments of this moment to `link`; none
  // of them is removed before that returns. An error changes no row.
  using Link = std::function<Status(const std::vector<SegmentView>&)>;
  Status Capture(const Link& link) ONEEMB_EXCLUDES(compact_mutex_, put_mutex_);

  // Replaces all rows by those of `build`, which makes them from sealed
  // segments that it puts into the tier's folder. On its error nothing has
  // changed.
  using Build = std::function<Status(std::shared_ptr<SegmentMap>*)>;
  Status Replace(const Build& build)
      ONEEMB_EXCLUDES(compact_mutex_, put_mutex_);

  Env* env() const { return env_.get(); }
  const std::string& folder() const { return folder_; }
  int64_t slots_per_segment() const { return slots_per_segment_; }

 private:
  SsdTier(std::shared_ptr<Env> env, std::string folder,
          const SsdTierOptions& options);

  SegmentWriterOptions WriterOptions();
  std::shared_ptr<SegmentMap> map() const;
  Status TakeReader(std::unique_ptr<RowReader>* reader);
  void GiveReader(std::unique_ptr<RowReader> reader);
  int64_t ReaderBytes() const;
  // Of index, bitmaps and all buffers that there can be.
  int64_t MostBufferBytes();
  Status CheckBudget(KeySpan keys) const ONEEMB_REQUIRES(put_mutex_);
  Status PutOnce(KeySpan keys, const char* rows)
      ONEEMB_EXCLUDES(compact_mutex_, put_mutex_);
  Status SealAll(SegmentMap* map) ONEEMB_REQUIRES(compact_mutex_, put_mutex_);
  void RemoveStrangers(const SegmentMap& map) noexcept
      ONEEMB_REQUIRES(compact_mutex_, put_mutex_);
  // Bytes that compaction may write from now on.
  void AddCredit(double bytes);
  // Lets compaction know of `bytes` more, put or made garbage.
  void GrantCompaction(int64_t bytes);
  void CompactWithinCredit() noexcept;
  // Whether there is so much garbage that the thread alone is too slow.
  bool CompactionIsBehind() const;
  // Makes a put wait, and work, until it is not, or its share is used up.
  void HelpCompaction() noexcept;
  Status CompactStep(bool only_urgent, bool* worked)
      ONEEMB_EXCLUDES(compact_mutex_);
  // What compaction has written since it had written `before` bytes.
  void CountMoved(int64_t before) ONEEMB_REQUIRES(compact_mutex_);
  void CompactInBackground();

  const std::shared_ptr<Env> env_;
  const std::string folder_;
  const SsdTierOptions options_;
  const SegmentLayout layout_;
  const int64_t slots_per_segment_;
  std::atomic<uint64_t> next_number_{1};
  std::atomic<int64_t> buffer_bytes_{0};  // of readers and writers
  const int64_t most_buffer_bytes_;

  // Taken in this order. compact_mutex_: one compaction or capture at a time.
  // put_mutex_: one put at a time.
  Mutex compact_mutex_;
  Mutex put_mutex_;
  LogWriter put_log_ ONEEMB_GUARDED_BY(put_mutex_);
  Compactor compactor_ ONEEMB_GUARDED_BY(compact_mutex_);

  mutable Mutex map_mutex_;  // for the pointer; the map has its own lock
  std::shared_ptr<SegmentMap> map_ ONEEMB_GUARDED_BY(map_mutex_);

  Mutex reader_mutex_;
  CondVar reader_given_;
  int num_readers_ ONEEMB_GUARDED_BY(reader_mutex_) = 0;
  std::vector<std::unique_ptr<RowReader>> idle_readers_
      ONEEMB_GUARDED_BY(reader_mutex_);

  // Bytes that compaction may still write.
  std::atomic<int64_t> credit_{0};
  std::atomic<int64_t> put_bytes_{0};
  std::atomic<int64_t> moved_bytes_{0};
  std::atomic<int64_t> compactions_{0};
  std::atomic<bool> direct_io_{false};
  std::atomic<bool> stop_{false};
  Mutex wake_mutex_;
  CondVar wake_;
  bool work_ ONEEMB_GUARDED_BY(wake_mutex_) = false;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace oneemb
