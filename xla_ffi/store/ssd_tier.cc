#include "store/ssd_tier.h"

#include <algorithm>
#include <new>
#include <set>
#include <system_error>
#include <utility>

#include "store/files.h"

namespace oneemb {
namespace {

constexpr int64_t kIterateBytes = int64_t{1} << 20;

}  // namespace

Status RowIterator::Next(RowBatch* batch) {
  batch->Clear();
  for (; next_ < views_.size(); ++next_, scan_ = nullptr) {
    SegmentView& view = views_[next_];
    if (scan_ == nullptr) {
      scan_ = std::make_unique<SegmentScan>(view.segment, std::move(view.live));
    }
    ONEEMB_RETURN_IF_ERROR(scan_->Next(env_.get(), kIterateBytes, batch));
    if (!batch->empty()) return {};
  }
  return {};
}

SsdTier::SsdTier(std::shared_ptr<Env> env, std::string folder,
                 const SsdTierOptions& options)
    : env_(std::move(env)),
      folder_(std::move(folder)),
      options_(options),
      layout_(LayoutFor(options.row_bytes)),
      slots_per_segment_(layout_.SlotsIn(options.segment_bytes)),
      most_buffer_bytes_(MostBufferBytes()),
      put_log_(WriterOptions()),
      compactor_(WriterOptions(), options.policy),
      map_(std::make_shared<SegmentMap>(slots_per_segment_)) {}

SegmentWriterOptions SsdTier::WriterOptions() {
  return {env_.get(),
          folder_,
          layout_,
          slots_per_segment_,
          options_.write_bytes,
          options_.write_depth,
          &next_number_,
          &buffer_bytes_};
}

Status SsdTier::Open(std::shared_ptr<Env> env, const std::string& folder,
                     const SsdTierOptions& options,
                     std::unique_ptr<SsdTier>* tier) {
  std::unique_ptr<SsdTier> fresh(new SsdTier(std::move(env), folder, options));
  const int64_t buffers = fresh->most_buffer_bytes_;
  if (const int64_t budget = options.memory_budget_bytes;
      budget != 0 && budget <= buffers) {
    return {StatusKind::kInvalidArgument,
            "memory_budget_bytes: " + std::to_string(budget) +
                "; buffers alone take " + std::to_string(buffers) +
                " bytes: give it more, or lower readers, read_depth, "
                "write_depth or segment_bytes"};
  }
  if (options.compaction == CompactionMode::kBackground) {
    SsdTier* const self = fresh.get();
    try {
      fresh->thread_ = std::thread([self] { self->CompactInBackground(); });
    } catch (const std::system_error& error) {
      return {StatusKind::kUnavailable,
              std::string("starting a thread for compaction: ") + error.what()};
    }
  }
  *tier = std::move(fresh);
  return {};
}

SsdTier::~SsdTier() {
  if (!thread_.joinable()) return;
  {
    const MutexLock lock(wake_mutex_);
    stop_ = true;
    wake_.NotifyAll();
  }
  thread_.join();
}

std::shared_ptr<SegmentMap> SsdTier::map() const {
  const MutexLock lock(map_mutex_);
  return map_;
}

Status SsdTier::TakeReader(std::unique_ptr<RowReader>* reader) {
  const MutexLock lock(reader_mutex_);
  while (idle_readers_.empty() && num_readers_ == options_.readers) {
    reader_given_.Wait(reader_mutex_);
  }
  if (!idle_readers_.empty()) {
    *reader = std::move(idle_readers_.back());
    idle_readers_.pop_back();
    return {};
  }
  idle_readers_.reserve(static_cast<size_t>(options_.readers));
  ONEEMB_RETURN_IF_ERROR(RowReader::Open(env_.get(), options_.read_depth,
                                         options_.block_bytes,
                                         options_.row_bytes, reader));
  ++num_readers_;
  buffer_bytes_ += ReaderBytes();
  return {};
}

// Takes back a reader; null: it is no more.
void SsdTier::GiveReader(std::unique_ptr<RowReader> reader) {
  const MutexLock lock(reader_mutex_);
  if (reader != nullptr) {
    idle_readers_.push_back(std::move(reader));
  } else {
    --num_readers_;
    buffer_bytes_ -= ReaderBytes();
  }
  reader_given_.NotifyOne();
}

void SsdTier::Locate(KeySpan keys, LocatedRows* located) const {
  std::vector<uint64_t> locations(static_cast<size_t>(keys.size));
  const std::shared_ptr<SegmentMap> map = this->map();
  map->Find(keys, locations.data(), &located->table);
  std::vector<std::pair<uint64_t, int64_t>> order;
  order.reserve(locations.size());
  for (int64_t i = 0; i < keys.size; ++i) {
    const uint64_t location = locations[static_cast<size_t>(i)];
    if (location != kNoLocation) order.emplace_back(location, i);
  }
  std::sort(order.begin(), order.end());
  located->reads.clear();
  located->reads.reserve(order.size());
  for (const auto& [location, item] : order) {
    const auto place = static_cast<size_t>(map->PlaceOf(location));
    located->reads.push_back(
        {(*located->table)[place].get(), map->SlotOf(location), item});
  }
}

void SsdTier::CheckCurrent(const LocatedRows& located, KeySpan keys,
                           uint8_t* current) const {
  std::vector<uint64_t> locations(static_cast<size_t>(keys.size));
  std::shared_ptr<const SegmentTable> table;
  const std::shared_ptr<SegmentMap> map = this->map();
  map->Find(keys, locations.data(), &table);
  std::fill(current, current + keys.size, uint8_t{0});
  for (const RowRead& read : located.reads) {
    const uint64_t location = locations[static_cast<size_t>(read.item)];
    if (location == kNoLocation) continue;
    const auto place = static_cast<size_t>(map->PlaceOf(location));
    // The segment is held, so no other has its address.
    const bool same = (*table)[place].get() == read.segment &&
                      map->SlotOf(location) == read.slot;
    current[read.item] = same ? 1 : 0;
  }
}

Status SsdTier::Read(const LocatedRows& located, KeySpan keys, char* rows,
                     uint8_t* found) {
  std::fill(found, found + keys.size, kRowAbsent);
  if (located.reads.empty()) return {};
  for (const RowRead& read : located.reads) found[read.item] = kRowFailed;
  // Whatever happens, the place of the reader is given back.
  struct Borrowed {
    Borrowed(SsdTier* from, std::unique_ptr<RowReader> taken)
        : tier(from), reader(std::move(taken)) {}
    ~Borrowed() { tier->GiveReader(std::move(reader)); }
    Borrowed(const Borrowed&) = delete;
    Borrowed& operator=(const Borrowed&) = delete;
    SsdTier* tier;
    std::unique_ptr<RowReader> reader;
  };
  std::unique_ptr<RowReader> reader;
  ONEEMB_RETURN_IF_ERROR(TakeReader(&reader));
  Borrowed borrowed(this, std::move(reader));
  try {
    return borrowed.reader->Read(located.reads, keys, rows, found);
  } catch (const std::bad_alloc&) {
    borrowed.reader = nullptr;  // with transfers in flight; it waits for them
    throw;
  }
}

Status SsdTier::Fetch(KeySpan keys, char* rows, uint8_t* found) {
  LocatedRows located;
  Locate(keys, &located);
  return Read(located, keys, rows, found);
}

int64_t SsdTier::ReaderBytes() const {
  return RowReader::MemoryBytes(options_.read_depth, options_.row_bytes);
}

int64_t SsdTier::MostBufferBytes() {
  // A batch of compaction may need room in the index for as long as it lasts.
  constexpr int64_t kIndexBytes = 40;
  const int64_t batch = kCompactionReadBytes / layout_.pitch;
  return 2 * SegmentWriter::MemoryBytes(WriterOptions()) +
         options_.readers * ReaderBytes() + batch * kIndexBytes;
}

Status SsdTier::CheckBudget(KeySpan keys) const {
  const int64_t budget = options_.memory_budget_bytes;
  if (budget == 0) return {};
  const int64_t then = most_buffer_bytes_ + map()->BytesAfter(keys);
  if (then <= budget) return {};
  return {StatusKind::kNoSpace,
          "memory_budget_bytes: " + std::to_string(keys.size) +
              " more rows would take index, bitmaps and buffers to " +
              std::to_string(then) + " bytes, above " + std::to_string(budget)};
}

Status SsdTier::Put(KeySpan keys, const char* rows) {
  if (keys.size == 0) return {};
  Status status = PutOnce(keys, rows);
  // The system's error, not that of a full budget.
  if (status.kind() == StatusKind::kNoSpace && status.error() != 0) {
    // Segments without live rows may be what fills the disk.
    bool worked = false;
    const Status freed = CompactStep(true, &worked);
    if (freed.ok() && worked) status = PutOnce(keys, rows);
  }
  return status;
}

Status SsdTier::PutOnce(KeySpan keys, const char* rows) {
  Status status;
  int64_t bytes = 0;
  {
    const MutexLock lock(put_mutex_);
    ONEEMB_RETURN_IF_ERROR(CheckBudget(keys));
    const std::shared_ptr<SegmentMap> map = this->map();
    const KeyParts parts(keys);
    std::vector<uint64_t> locations;
    const int64_t before = put_log_.bytes_written();
    status = put_log_.Append(map.get(), keys, parts, rows, &locations);
    if (status.ok()) {
      status = map->Publish(parts, locations.data());
      put_log_.Settle(map.get());
    }
    bytes = put_log_.bytes_written() - before;
    direct_io_ = put_log_.direct_io();
  }
  put_bytes_ += bytes;
  GrantCompaction(bytes);
  if (options_.compaction == CompactionMode::kBackground) HelpCompaction();
  return status;
}

void SsdTier::Erase(KeySpan keys, uint8_t* erased) {
  map()->Erase(keys, erased);
  const int64_t count = std::count(erased, erased + keys.size, uint8_t{1});
  if (count > 0) GrantCompaction(count * layout_.pitch);
}

void SsdTier::Contains(KeySpan keys, uint8_t* found) const {
  std::vector<uint64_t> locations(static_cast<size_t>(keys.size));
  std::shared_ptr<const SegmentTable> table;
  map()->Find(keys, locations.data(), &table);
  for (int64_t i = 0; i < keys.size; ++i) {
    const bool there = locations[static_cast<size_t>(i)] != kNoLocation;
    found[i] = there ? kRowFound : kRowAbsent;
  }
}

std::unique_ptr<RowIterator> SsdTier::Iterate() const {
  return std::make_unique<RowIterator>(env_, map()->Capture());
}

// --- compaction ---

void SsdTier::AddCredit(double bytes) {
  const auto granted = static_cast<int64_t>(bytes);
  // A long time without garbage must not end in a long storm of moves.
  const int64_t most = 2 * options_.segment_bytes;
  int64_t credit = credit_;
  while (!credit_.compare_exchange_weak(credit,
                                        std::min(most, credit + granted))) {
  }
}

void SsdTier::GrantCompaction(int64_t bytes) {
  AddCredit(static_cast<double>(bytes) * options_.compaction_share);
  if (options_.compaction == CompactionMode::kInline) CompactWithinCredit();
  if (options_.compaction != CompactionMode::kBackground) return;
  const MutexLock lock(wake_mutex_);
  work_ = true;
  wake_.NotifyOne();
}

void SsdTier::CompactWithinCredit() noexcept {
  // An error has changed nothing, and shows in the next snapshot if it matters
  // to it; the next put tries again. Nor is a lack of memory anybody's end:
  // this may be a thread of its own, or a put that has done its work.
  try {
    bool worked = true;
    while (worked && !stop_) {
      if (!CompactStep(credit_ <= 0, &worked).ok()) return;
    }
  } catch (const std::bad_alloc&) {
    return;
  }
}

bool SsdTier::CompactionIsBehind() const {
  constexpr double kBehind = 0.85;
  constexpr int64_t kSegments = 4;
  const SegmentMap::Totals totals = map()->totals();
  return totals.slots - totals.live >= kSegments * slots_per_segment_ &&
         static_cast<double>(totals.live) <
             kBehind * options_.policy.utilisation *
                 static_cast<double>(totals.slots);
}

void SsdTier::HelpCompaction() noexcept {
  try {
    bool worked = true;
    while (worked && credit_ > 0 && CompactionIsBehind()) {
      if (!CompactStep(false, &worked).ok()) return;
    }
  } catch (const std::bad_alloc&) {
    return;
  }
}

Status SsdTier::CompactStep(bool only_urgent, bool* worked) {
  const MutexLock lock(compact_mutex_);
  const int64_t before = compactor_.bytes_written();
  const std::shared_ptr<SegmentMap> map = this->map();
  const Status status = compactor_.Step(map.get(), only_urgent, worked);
  CountMoved(before);
  return status;
}

void SsdTier::CountMoved(int64_t before) {
  const int64_t bytes = compactor_.bytes_written() - before;
  credit_ -= bytes;
  moved_bytes_ += bytes;
  compactions_ = compactor_.steps();
}

void SsdTier::CompactInBackground() {
  for (;;) {
    {
      const MutexLock lock(wake_mutex_);
      while (!work_ && !stop_) wake_.Wait(wake_mutex_);
      if (stop_) return;
      work_ = false;
    }
    CompactWithinCredit();
  }
}

Status SsdTier::Compact() {
  bool worked = true;
  // As often as there are segments now: rows that fill a part of a frame each
  // time they are moved would be moved for ever.
  for (int64_t left = map()->totals().segments; worked && left > 0; --left) {
    ONEEMB_RETURN_IF_ERROR(CompactStep(false, &worked));
  }
  return {};
}

// --- snapshots ---

// Seals both logs and moves out what lies in segments that could not be sealed.
Status SsdTier::SealAll(SegmentMap* map) {
  constexpr int kRounds = 3;
  put_log_.Close(map);
  for (int round = 0; round < kRounds; ++round) {
    bool worked = true;
    while (worked) {
      ONEEMB_RETURN_IF_ERROR(compactor_.Step(map, true, &worked));
    }
    compactor_.Close(map);
    const std::vector<SegmentView> views = map->Capture();
    if (std::all_of(views.begin(), views.end(),
                    [](const SegmentView& view) { return view.durable; })) {
      return {};
    }
  }
  return {StatusKind::kIoError,
          folder_ +
              ": rows could not be brought to the disk, neither where "
              "they are nor elsewhere"};
}

Status SsdTier::Capture(const Link& link) {
  const MutexLock compact_lock(compact_mutex_);
  const std::shared_ptr<SegmentMap> map = this->map();
  std::vector<SegmentView> views;
  {
    const MutexLock put_lock(put_mutex_);
    const int64_t put_before = put_log_.bytes_written();
    const int64_t moved_before = compactor_.bytes_written();
    const Status sealed = SealAll(map.get());
    put_bytes_ += put_log_.bytes_written() - put_before;
    CountMoved(moved_before);
    ONEEMB_RETURN_IF_ERROR(sealed);
    views = map->Capture();
  }
  AddCredit(static_cast<double>(options_.segment_bytes) *
            options_.compaction_share_of_save);
  return link(views);
}

Status SsdTier::Replace(const Build& build) {
  const MutexLock compact_lock(compact_mutex_);
  const MutexLock put_lock(put_mutex_);
  std::shared_ptr<SegmentMap> fresh;
  ONEEMB_RETURN_IF_ERROR(build(&fresh));
  uint64_t newest = 0;
  for (const SegmentView& view : fresh->Capture()) {
    newest = std::max(newest, view.segment->number);
  }
  if (next_number_ <= newest) next_number_ = newest + 1;
  put_log_.Abandon();
  compactor_.Abandon();
  {
    const MutexLock lock(map_mutex_);
    map_ = fresh;
  }
  RemoveStrangers(*fresh);
  return {};
}

// Removes the files that no live segment has. One that stays, for want of
// memory say, costs space only.
void SsdTier::RemoveStrangers(const SegmentMap& map) noexcept {
  try {
    std::set<std::string> ours;
    for (const SegmentView& view : map.Capture()) {
      ours.insert(view.segment->name);
    }
    std::vector<std::string> names;
    if (!env_->List(folder_, &names).ok()) return;
    for (const std::string& name : names) {
      if (ours.count(name) == 0) (void)env_->Remove(JoinPath(folder_, name));
    }
  } catch (const std::bad_alloc&) {
    return;
  }
}

SsdTier::Stats SsdTier::stats() const {
  Stats stats;
  stats.map = map()->totals();
  stats.rows = size();
  stats.put_bytes = put_bytes_;
  stats.moved_bytes = moved_bytes_;
  stats.compactions = compactions_;
  stats.memory_bytes = stats.map.memory_bytes + buffer_bytes_;
  stats.direct_io = direct_io_;
  return stats;
}

}  // namespace oneemb
