// Moves live rows out of segments that are mostly dead, and removes these.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "store/env.h"
#include "store/log_writer.h"
#include "store/segment_map.h"
#include "store/segment_scan.h"
#include "store/status.h"

namespace oneemb {

// A segment is read in pieces of about this many bytes.
constexpr int64_t kCompactionReadBytes = int64_t{1} << 20;

// For one thread at a time. Rows may be put and erased meanwhile: a row that
// has a newer version by the time it was moved stays where that one is.
class Compactor {
 public:
  // Moved rows go to segments of their own: they are colder than new ones.
  Compactor(SegmentWriterOptions options, const CompactionPolicy& policy)
      : env_(options.env),
        folder_(options.folder),
        policy_(policy),
        log_(std::move(options)) {}

  // Empties and removes one segment, or several small ones: their rows then lie
  // together, whatever a save closes between two steps. *worked says whether
  // there was one: with only_urgent, one that is dead or could not be sealed.
  // An error changes no row: what was not moved stays where it is. kCorruption
  // when a damaged row was found; it stays too, and its segment is left alone
  // until it dies.
  Status Step(SegmentMap* map, bool only_urgent, bool* worked);

  // Seals the segment that moved rows go to.
  void Close(SegmentMap* map) { log_.Close(map); }
  // The map is no more.
  void Abandon() { log_.Abandon(); }

  int64_t bytes_written() const { return log_.bytes_written(); }
  int64_t steps() const { return steps_; }

 private:
  // Live rows of one segment or of several. They are written together: what is
  // written begins a frame.
  struct RowsToMove {
    std::vector<Key> keys;
    std::vector<char> rows;
    std::vector<uint64_t> from;  // locations
  };

  Status ReadRows(SegmentMap* map, const Victim& victim, RowsToMove* rows,
                  Status* bad);
  Status WriteRows(SegmentMap* map, RowsToMove* rows);
  void Remove(SegmentMap* map, const Victim& victim);

  Env* const env_;
  const std::string folder_;
  const CompactionPolicy policy_;
  LogWriter log_;
  int64_t steps_ = 0;
};

}  // namespace oneemb
