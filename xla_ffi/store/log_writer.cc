#include "store/log_writer.h"

#include <new>

namespace oneemb {
namespace {

// Keys at least, if there are as many: the map looks at all shards each time.
constexpr int64_t kPreparedAtOnce = 1024;

}  // namespace

int64_t LogWriter::PlaceOf(SegmentMap* map,
                           const std::shared_ptr<const Segment>& s) {
  for (const Known& known : known_) {
    if (known.segment == s) return known.place;
  }
  known_.reserve(known_.size() + 1);  // nothing may fail once it is in the map
  known_.push_back({s, map->Add(s)});
  return known_.back().place;
}

Status LogWriter::Append(SegmentMap* map, KeySpan keys, const KeyParts& parts,
                         const char* rows, std::vector<uint64_t>* locations) {
  std::vector<SlotRun> runs;
  locations->clear();
  locations->reserve(static_cast<size_t>(keys.size));
  int64_t next = 0;
  Status written = writer_.Append(keys, rows, &runs, [&] {
    const int64_t first = next;
    while (next < KeyParts::kCount &&
           parts.Between(first, next).size < kPreparedAtOnce) {
      ++next;
    }
    if (first < next) map->Prepare(parts.Between(first, next));
    return next < KeyParts::kCount;
  });
  if (written.kind() == StatusKind::kIoError) {
    Settle(map);
    written = writer_.Append(keys, rows, &runs);
  }
  if (!written.ok()) {
    Settle(map);
    return written;
  }
  for (const SlotRun& run : runs) {
    const int64_t place = PlaceOf(map, run.segment);
    for (int64_t i = 0; i < run.count; ++i) {
      locations->push_back(map->Location(place, run.first_slot + i));
    }
  }
  return {};
}

void LogWriter::Settle(SegmentMap* map) noexcept {
  while (const ClosedSegment* const closed = writer_.FirstClosed()) {
    int64_t place = 0;
    try {
      place = PlaceOf(map, closed->segment);
    } catch (const std::bad_alloc&) {
      return;
    }
    map->Close(place, closed->num_slots, closed->sealed.ok());
    writer_.PopClosed();
    for (size_t k = 0; k < known_.size(); ++k) {
      if (known_[k].place != place) continue;
      known_.erase(known_.begin() + static_cast<std::ptrdiff_t>(k));
      break;
    }
  }
}

void LogWriter::Close(SegmentMap* map) {
  writer_.Close();
  Settle(map);
}

void LogWriter::Abandon() {
  writer_.Abandon();
  while (writer_.FirstClosed() != nullptr) writer_.PopClosed();
  known_.clear();
}

}  // namespace oneemb
