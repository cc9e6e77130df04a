// A SegmentWriter whose segments are known to a SegmentMap.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "store/key.h"
#include "store/key_parts.h"
#include "store/segment_map.h"
#include "store/segment_writer.h"
#include "store/status.h"

namespace oneemb {

// For one thread at a time. A batch takes three steps: Append; the map learns
// of the new locations; Settle. In between nobody empties the new segments.
class LogWriter {
 public:
  explicit LogWriter(SegmentWriterOptions options)
      : writer_(std::move(options)) {}

  // Writes rows; locations[i] is where row i now can be read. When a write
  // fails, tries once more, elsewhere.
  // The map prepares for the rows while they are being written; `parts` are
  // those of the keys.
  Status Append(SegmentMap* map, KeySpan keys, const KeyParts& parts,
                const char* rows, std::vector<uint64_t>* locations);
  // Tells the map which segments are closed; those for which there is no memory
  // the next time.
  void Settle(SegmentMap* map) noexcept;
  // Seals the open segment and settles. What could not be sealed is in the
  // map's hands: it is not durable, and first to be compacted.
  void Close(SegmentMap* map);
  // Forgets the open segment: its map is no more.
  void Abandon();

  int64_t bytes_written() const { return writer_.bytes_written(); }
  bool direct_io() const { return writer_.direct_io(); }

 private:
  struct Known {
    std::shared_ptr<const Segment> segment;
    int64_t place;
  };

  int64_t PlaceOf(SegmentMap* map, const std::shared_ptr<const Segment>& s);

  SegmentWriter writer_;
  std::vector<Known> known_;  // segments in the map and not closed there
};

}  // namespace oneemb
