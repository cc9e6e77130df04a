#include "store/segment_map.h"

#include <algorithm>
#include <utility>

#include "store/crew.h"
#include "store/key_parts.h"

namespace oneemb {
namespace {

int BitsFor(int64_t values) {
  int bits = 0;
  while ((int64_t{1} << bits) < values) ++bits;
  return bits;
}

}  // namespace

SegmentMap::SegmentMap(int64_t slots, int64_t most_slots)
    : slots_(slots),
      most_slots_(most_slots),
      slot_bits_(BitsFor(most_slots)),
      table_(std::make_shared<SegmentTable>()) {}

void SegmentMap::Find(KeySpan keys, uint64_t* locations,
                      std::shared_ptr<const SegmentTable>* table) const {
  const ReaderLock lock(mutex_);
  index_.Find(keys.data, keys.size, locations);
  *table = table_;
}

int64_t SegmentMap::Add(std::shared_ptr<const Segment> segment) {
  const WriterLock lock(mutex_);
  auto table = std::make_shared<SegmentTable>(*table_);
  Entry entry;
  entry.live = Bitmap(most_slots_);
  size_t place = entries_.size();
  if (free_.empty()) {
    table->push_back(std::move(segment));
    free_.reserve(place + 1);  // so that Remove needs no memory for it
    entries_.push_back(std::move(entry));
  } else {
    place = static_cast<size_t>(free_.back());
    (*table)[place] = std::move(segment);
    entries_[place] = std::move(entry);
    free_.pop_back();
  }
  table_ = std::move(table);
  return static_cast<int64_t>(place);
}

void SegmentMap::Close(int64_t place, int64_t num_slots, bool durable) {
  const WriterLock lock(mutex_);
  Entry& entry = entries_[static_cast<size_t>(place)];
  entry.closed = true;
  entry.num_slots = num_slots;
  entry.durable = durable;
  entry.closed_at = clock_;
}

void SegmentMap::Remove(int64_t place) {
  const WriterLock lock(mutex_);
  auto table = std::make_shared<SegmentTable>(*table_);
  (*table)[static_cast<size_t>(place)] = nullptr;
  entries_[static_cast<size_t>(place)] = Entry();
  free_.push_back(place);
  table_ = std::move(table);
}

void SegmentMap::SetLive(uint64_t location) {
  Entry& entry = entries_[static_cast<size_t>(PlaceOf(location))];
  entry.live.Set(SlotOf(location));
  ++entry.num_live;
}

void SegmentMap::SetDead(uint64_t location) {
  Entry& entry = entries_[static_cast<size_t>(PlaceOf(location))];
  entry.live.Clear(SlotOf(location));
  --entry.num_live;
}

uint64_t SegmentMap::EndOfLocations() const {
  return Location(static_cast<int64_t>(entries_.size()), 0);
}

int64_t SegmentMap::size() const {
  const ReaderLock lock(mutex_);
  return index_.size();
}

Status SegmentMap::Reserve(int64_t rows, int64_t segments) {
  const WriterLock lock(mutex_);
  return index_.ReserveRows(rows, Location(segments, 0));
}

int64_t SegmentMap::BytesAfter(KeySpan keys) const {
  const ReaderLock lock(mutex_);
  // Two more segments may be needed: this put's, and compaction's.
  return BitmapBytes() + 2 * (most_slots_ / 8 + kEntryBytes) +
         index_.BytesAfterReserve(keys.data, keys.size,
                                  EndOfLocations() + Location(1, 0));
}

void SegmentMap::Prepare(KeySpan keys) {
  const WriterLock lock(mutex_);
  (void)index_.Reserve(keys.data, keys.size, EndOfLocations()).ok();
}

// Several threads, where there are: each key costs a few lines far away.
void SegmentMap::PutInIndex(const KeyParts& parts, const uint64_t* locations,
                            uint64_t* previous) {
  constexpr int64_t kFewKeys = 2048;  // not worth a second thread
  RowIndex* const index = &index_;
  const int64_t grain = parts.keys().size < kFewKeys ? KeyParts::kCount : 1;
  Crew::Get()->ForRanges(
      KeyParts::kCount, grain, [&](int64_t first, int64_t last) {
        const KeySpan keys = parts.Between(first, last);
        const int64_t begin = parts.begin(first);
        index->Put(keys.data, locations + begin, keys.size, previous + begin);
      });
}

Status SegmentMap::Publish(const KeyParts& parts, const uint64_t* locations) {
  const KeySpan keys = parts.keys();
  std::vector<uint64_t> fresh(static_cast<size_t>(keys.size));
  for (int64_t i = 0; i < keys.size; ++i) {
    fresh[static_cast<size_t>(i)] = locations[parts.Position(i)];
  }
  std::vector<uint64_t> previous(static_cast<size_t>(keys.size));
  const WriterLock lock(mutex_);
  ONEEMB_RETURN_IF_ERROR(
      index_.Reserve(keys.data, keys.size, EndOfLocations()));
  PutInIndex(parts, fresh.data(), previous.data());
  clock_ += static_cast<uint64_t>(keys.size);
  for (size_t i = 0; i < fresh.size(); ++i) {
    // Of a key that occurs twice, this clears what the first has just set.
    SetLive(fresh[i]);
    if (previous[i] != kNoLocation) SetDead(previous[i]);
  }
  return {};
}

void SegmentMap::Erase(KeySpan keys, uint8_t* erased) {
  std::vector<uint64_t> previous(static_cast<size_t>(keys.size));
  const WriterLock lock(mutex_);
  index_.Erase(keys.data, keys.size, previous.data());
  for (int64_t i = 0; i < keys.size; ++i) {
    const uint64_t old = previous[static_cast<size_t>(i)];
    erased[i] = old != kNoLocation ? 1 : 0;
    if (old != kNoLocation) SetDead(old);
  }
}

Status SegmentMap::Move(KeySpan keys, const uint64_t* from,
                        const uint64_t* to) {
  std::vector<uint8_t> moved(static_cast<size_t>(keys.size));
  const WriterLock lock(mutex_);
  ONEEMB_RETURN_IF_ERROR(
      index_.Reserve(keys.data, keys.size, EndOfLocations()));
  index_.Move(keys.data, from, to, keys.size, moved.data());
  for (int64_t i = 0; i < keys.size; ++i) {
    if (moved[static_cast<size_t>(i)] == 0) continue;
    SetDead(from[i]);
    SetLive(to[i]);
  }
  return {};
}

// Cost-benefit: the space it frees times the time that the rest will stay
// valid, over the cost of reading the segment and writing what lives. Greedy
// choice moves 10 % more rows when ids follow a Zipf law.
double SegmentMap::Gain(const Entry& entry) const {
  if (LeftAlone(entry)) return -1;
  constexpr double kAnyway = 1e300;
  if (entry.num_live == 0 || !entry.durable) return kAnyway;
  const auto slots = static_cast<double>(entry.num_slots);
  const double used = static_cast<double>(entry.num_live) / slots;
  const auto age = static_cast<double>(clock_ - entry.closed_at) + slots;
  return used >= 1 ? -1 : (1 - used) * age / (1 + used);
}

SegmentView SegmentMap::View(size_t place) const {
  const Entry& entry = entries_[place];
  return {(*table_)[place], entry.live, entry.num_slots, entry.durable};
}

// A save closes the segments that are open, and so leaves small ones. Of those,
// smallest first, all go that have no more rows than those before them
// together: a row is moved again only when what it lies with has doubled. A
// quarter of a segment at a time, for a save has to wait.
std::vector<size_t> SegmentMap::PickFragments(
    const CompactionPolicy& policy) const {
  const double small = policy.fragment_share * static_cast<double>(slots_);
  std::vector<std::pair<int64_t, size_t>> fragments;  // live rows, place
  for (size_t p = 0; p < entries_.size(); ++p) {
    const Entry& entry = entries_[p];
    const bool whole = static_cast<double>(entry.num_slots) >= small;
    if (!LeftAlone(entry) && !whole) fragments.emplace_back(entry.num_live, p);
  }
  const auto count = static_cast<int64_t>(fragments.size());
  // One alone would only become another.
  if (count < 2 || count <= policy.most_fragments) return {};
  std::sort(fragments.begin(), fragments.end());
  std::vector<size_t> places;
  int64_t sum = 0;
  for (const auto& [live, place] : fragments) {
    const bool two = places.size() >= 2;
    if (two && (live > sum || sum + live > slots_ / 4)) break;
    sum += live;
    places.push_back(place);
  }
  return places;
}

std::vector<size_t> SegmentMap::PickDead(const CompactionPolicy& policy,
                                         bool only_urgent) const {
  int64_t live = 0;
  int64_t slots = 0;
  double best = 0;
  size_t place = entries_.size();
  for (size_t p = 0; p < entries_.size(); ++p) {
    const Entry& entry = entries_[p];
    if (LeftAlone(entry)) continue;
    live += entry.num_live;
    slots += entry.num_slots;
    const double gain = Gain(entry);
    if (gain <= best) continue;
    best = gain;
    place = p;
  }
  if (place == entries_.size()) return {};
  const Entry& entry = entries_[place];
  if (entry.num_live == 0 || !entry.durable) return {place};
  // Less than a segment's worth of dead slots is not worth a move: they may be
  // the padding of small batches, which a move would make anew.
  const bool wasteful = slots - live >= slots_ &&
                        static_cast<double>(live) <
                            policy.utilisation * static_cast<double>(slots);
  if (only_urgent || !wasteful) return {};
  return {place};
}

std::vector<Victim> SegmentMap::PickVictims(const CompactionPolicy& policy,
                                            bool only_urgent) const {
  const ReaderLock lock(mutex_);
  std::vector<size_t> places = PickDead(policy, only_urgent);
  if (places.empty() && !only_urgent) places = PickFragments(policy);
  std::vector<Victim> victims;
  victims.reserve(places.size());
  for (const size_t p : places) {
    victims.push_back({static_cast<int64_t>(p), entries_[p].num_live, View(p)});
  }
  return victims;
}

void SegmentMap::Pin(int64_t place) {
  const WriterLock lock(mutex_);
  entries_[static_cast<size_t>(place)].pinned = true;
}

std::vector<SegmentView> SegmentMap::Capture() const {
  const ReaderLock lock(mutex_);
  std::vector<SegmentView> views;
  for (size_t p = 0; p < entries_.size(); ++p) {
    if (entries_[p].num_live > 0) views.push_back(View(p));
  }
  return views;
}

int64_t SegmentMap::BitmapBytes() const {
  int64_t bytes = 0;
  for (const Entry& entry : entries_) {
    bytes += kEntryBytes +
             static_cast<int64_t>(entry.live.words().size() * sizeof(uint64_t));
  }
  return bytes;
}

SegmentMap::Totals SegmentMap::totals() const {
  const ReaderLock lock(mutex_);
  Totals totals;
  totals.index_bytes = index_.bytes();
  totals.memory_bytes = totals.index_bytes + BitmapBytes();
  for (const Entry& entry : entries_) {
    totals.pinned += entry.pinned ? 1 : 0;
    totals.segments += entry.live.size() > 0 ? 1 : 0;
    if (!entry.closed) continue;
    totals.slots += entry.num_slots;
    totals.live += entry.num_live;
  }
  return totals;
}

}  // namespace oneemb
