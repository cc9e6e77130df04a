// Which row lives where: the index from keys to locations, and for each segment
// which of its slots are live. All in memory, no I/O.
//
// A location is a segment's place in the table of segments and a slot. Places
// are used again, so a location means something only together with the table
// of the moment at which it was found.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "store/key.h"
#include "store/mutex.h"
#include "store/row_index.h"
#include "store/segment.h"
#include "store/segment_scan.h"
#include "store/status.h"

namespace oneemb {

class KeyParts;
using SegmentTable = std::vector<std::shared_ptr<const Segment>>;

// A segment at one moment.
struct SegmentView {
  std::shared_ptr<const Segment> segment;
  Bitmap live;
  int64_t num_slots;  // 0 while the segment is open
  bool durable;       // sealed
};

// What compaction should empty next.
struct Victim {
  int64_t place;
  int64_t live;
  SegmentView view;
};

// What is worth the work of compaction.
struct CompactionPolicy {
  // The share of all slots that is kept live.
  double utilisation = 0.7;
  // Closed segments with fewer slots than this share of a full one are merged
  // where there are more of them than that: each is an open file, and a link of
  // every snapshot.
  double fragment_share = 0.5;
  int64_t most_fragments = 16;
};

// Thread-safe. A batch is published, moved or erased as a whole: no other
// thread sees half of it.
class SegmentMap {
 public:
  // For segments of up to `slots` slots; a loaded one may have more, up to
  // `most_slots`.
  explicit SegmentMap(int64_t slots) : SegmentMap(slots, slots) {}
  SegmentMap(int64_t slots, int64_t most_slots);

  // locations[i] is kNoLocation where there is no row; *table is theirs.
  void Find(KeySpan keys, uint64_t* locations,
            std::shared_ptr<const SegmentTable>* table) const;

  uint64_t Location(int64_t place, int64_t slot) const {
    return static_cast<uint64_t>(place) << slot_bits_ |
           static_cast<uint64_t>(slot);
  }
  int64_t PlaceOf(uint64_t location) const {
    return static_cast<int64_t>(location >> slot_bits_);
  }
  int64_t SlotOf(uint64_t location) const {
    return static_cast<int64_t>(location & ((uint64_t{1} << slot_bits_) - 1));
  }

  // Adds a segment that may still get rows; returns its place. Nobody empties
  // or removes it before Close.
  int64_t Add(std::shared_ptr<const Segment> segment);
  void Close(int64_t place, int64_t num_slots, bool durable);
  // Forgets a segment without live rows.
  void Remove(int64_t place);

  // Before a bulk load of this many rows in this many segments. kNoMemory
  // changes nothing.
  Status Reserve(int64_t rows, int64_t segments);
  // At most what totals().memory_bytes becomes when these keys are published.
  int64_t BytesAfter(KeySpan keys) const;
  // Makes room for rows that are about to be published, so that this takes less
  // time then: for all of a batch, or for its KeyParts one by one. Where there
  // is no memory it is left to Publish to say so.
  void Prepare(KeySpan keys);
  // From now on the rows live at these locations, which are in the order of the
  // batch. Of a key that occurs twice the later counts. kNoMemory changes
  // nothing.
  Status Publish(const KeyParts& parts, const uint64_t* locations);
  void Erase(KeySpan keys, uint8_t* erased);
  // Rows that still live at `from` live at `to` now; the others have a newer
  // version, or none. kNoMemory changes nothing.
  Status Move(KeySpan keys, const uint64_t* from, const uint64_t* to);

  // Segments to empty now, all of them before the next are asked for; none
  // where nothing is worth it. One that could not be sealed or has no live rows
  // comes first, always, and is the only kind when `only_urgent`; then one that
  // is mostly dead, where too much is; then small ones, where they are many.
  std::vector<Victim> PickVictims(const CompactionPolicy& policy,
                                  bool only_urgent) const;
  // A damaged row was found there: compaction leaves the segment alone until
  // the row has died.
  void Pin(int64_t place);

  // Every segment that has live rows.
  std::vector<SegmentView> Capture() const;

  int64_t size() const;
  struct Totals {
    int64_t segments = 0;
    int64_t slots = 0;  // of closed segments
    int64_t live = 0;   // in closed segments
    int64_t pinned = 0;
    int64_t memory_bytes = 0;
    int64_t index_bytes = 0;
  };
  Totals totals() const;

 private:
  struct Entry {
    Bitmap live;
    int64_t num_live = 0;
    int64_t num_slots = 0;
    uint64_t closed_at = 0;  // clock_
    bool closed = false;
    bool durable = false;
    bool pinned = false;
  };
  static constexpr auto kEntryBytes = static_cast<int64_t>(sizeof(Entry));

  uint64_t EndOfLocations() const ONEEMB_REQUIRES_SHARED(mutex_);
  int64_t BitmapBytes() const ONEEMB_REQUIRES_SHARED(mutex_);
  void PutInIndex(const KeyParts& parts, const uint64_t* locations,
                  uint64_t* previous) ONEEMB_REQUIRES(mutex_);
  void SetLive(uint64_t location) ONEEMB_REQUIRES(mutex_);
  void SetDead(uint64_t location) ONEEMB_REQUIRES(mutex_);
  // Open, or with a damaged row that lives: not for compaction.
  static bool LeftAlone(const Entry& entry) {
    return !entry.closed || (entry.pinned && entry.num_live > 0);
  }
  // How much emptying the segment gains; below 0: not at all.
  double Gain(const Entry& entry) const ONEEMB_REQUIRES_SHARED(mutex_);
  // The one that it pays most to empty, if enough is dead or it is urgent.
  std::vector<size_t> PickDead(const CompactionPolicy& policy,
                               bool only_urgent) const
      ONEEMB_REQUIRES_SHARED(mutex_);
  std::vector<size_t> PickFragments(const CompactionPolicy& policy) const
      ONEEMB_REQUIRES_SHARED(mutex_);
  SegmentView View(size_t place) const ONEEMB_REQUIRES_SHARED(mutex_);

  const int64_t slots_;
  const int64_t most_slots_;
  const int slot_bits_;
  mutable SharedMutex mutex_;
  RowIndex index_ ONEEMB_GUARDED_BY(mutex_);
  // Replaced, never changed: readers keep the one that they found.
  std::shared_ptr<const SegmentTable> table_ ONEEMB_GUARDED_BY(mutex_);
  std::vector<Entry> entries_ ONEEMB_GUARDED_BY(mutex_);  // by place
  std::vector<int64_t> free_ ONEEMB_GUARDED_BY(mutex_);
  uint64_t clock_ ONEEMB_GUARDED_BY(mutex_) = 0;  // rows published
};

}  // namespace oneemb
