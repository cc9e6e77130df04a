#include "store/host_backend.h"

#include <algorithm>
#include <atomic>
#include <utility>
#include <vector>

namespace oneemb {
namespace {

// Rows in chunks of about this many bytes.
constexpr int64_t kChunkBytes = int64_t{1} << 20;

// Whole frames, so that a snapshot has no slots without a row but in the last.
int64_t ChunkRows(int64_t row_bytes) {
  return RoundUp(std::max<int64_t>(1, kChunkBytes / row_bytes),
                 LayoutFor(row_bytes).slots_per_frame);
}

}  // namespace

class HostBackend::Source final : public RowSource {
 public:
  Source(const HostBackend* backend, uint64_t version)
      : backend_(backend), version_(version) {}

  Status Next(RowBatch* batch) override {
    const int64_t row_bytes = backend_->options_.row_bytes;
    const auto most = static_cast<size_t>(ChunkRows(row_bytes));
    batch->Clear();
    batch->keys.resize(most);
    batch->rows.resize(most * static_cast<size_t>(row_bytes));
    const ReaderLock lock(backend_->mutex_);
    if (backend_->version_ != version_) {
      batch->Clear();
      return {StatusKind::kUnavailable,
              "the store was changed during an iteration; a store in host "
              "memory is iterated while nobody puts, erases or loads"};
    }
    const int64_t count =
        backend_->tier_->Scan(&cursor_, static_cast<int64_t>(most),
                              batch->keys.data(), batch->rows.data());
    batch->keys.resize(static_cast<size_t>(count));
    batch->rows.resize(static_cast<size_t>(count * row_bytes));
    return {};
  }

 private:
  const HostBackend* const backend_;
  const uint64_t version_;
  uint64_t cursor_ = 0;
};

HostBackend::HostBackend(std::shared_ptr<Env> env, std::string root,
                         const HostTierOptions& options,
                         const SsdTierOptions& segments)
    : env_(std::move(env)),
      root_(std::move(root)),
      options_(options),
      segments_(segments) {}

Status HostBackend::Open(std::shared_ptr<Env> env, const std::string& root,
                         const HostTierOptions& options,
                         const SsdTierOptions& segments,
                         std::unique_ptr<Backend>* backend) {
  std::unique_ptr<HostBackend> fresh(
      new HostBackend(std::move(env), root, options, segments));
  const WriterLock lock(fresh->mutex_);
  ONEEMB_RETURN_IF_ERROR(HostTier::Open(options, &fresh->tier_));
  *backend = std::move(fresh);
  return {};
}

Status HostBackend::Fetch(KeySpan keys, char* rows, uint8_t* found,
                          Access access) {
  (void)access;  // a read leaves no trace here
  const ReaderLock lock(mutex_);
  tier_->Fetch(keys.data, keys.size, rows, found);
  return {};
}

Status HostBackend::Put(KeySpan keys, const char* rows) {
  const WriterLock lock(mutex_);
  ++version_;
  return tier_->Put(keys.data, rows, keys.size);
}

Status HostBackend::Erase(KeySpan keys, uint8_t* erased) {
  const WriterLock lock(mutex_);
  ++version_;
  tier_->Erase(keys.data, keys.size, erased);
  return {};
}

int64_t HostBackend::size() const {
  const ReaderLock lock(mutex_);
  return tier_->size();
}

void HostBackend::AddStats(StoreStats* stats) const {
  const ReaderLock lock(mutex_);
  stats->rows += tier_->size();
  stats->memory_bytes += tier_->bytes();
}

Status HostBackend::Iterate(std::unique_ptr<RowSource>* rows) {
  const ReaderLock lock(mutex_);
  *rows = std::make_unique<Source>(this, version_);
  return {};
}

Status HostBackend::WriteRows(SnapshotWriter* writer) const {
  const SegmentLayout layout = LayoutFor(options_.row_bytes);
  std::atomic<uint64_t> next_number{1};
  const SegmentWriterOptions options{
      env_.get(),
      "",
      layout,
      layout.SlotsFor(tier_->size(), segments_.segment_bytes),
      segments_.write_bytes,
      segments_.write_depth,
      &next_number};
  const int64_t most = ChunkRows(options_.row_bytes);
  std::vector<Key> keys(static_cast<size_t>(most));
  std::vector<char> rows(static_cast<size_t>(most * options_.row_bytes));
  uint64_t cursor = 0;
  for (;;) {
    const int64_t count = tier_->Scan(&cursor, most, keys.data(), rows.data());
    if (count == 0) return writer->SealRows();
    ONEEMB_RETURN_IF_ERROR(
        writer->AddRows(options, {keys.data(), count}, rows.data()));
  }
}

namespace {

std::vector<std::string> SegmentNames(const std::vector<SegmentView>& views) {
  std::vector<std::string> names;
  names.reserve(views.size());
  for (const SegmentView& view : views) names.push_back(view.segment->name);
  return names;
}

}  // namespace

// Whether the last snapshot has these very rows and could be linked to.
bool HostBackend::LinkLast(SnapshotWriter* writer) {
  const MutexLock lock(last_mutex_);
  if (last_.empty() || last_version_ != version_) return false;
  const std::string path = SnapshotPath(root_, last_);
  Snapshot last;
  return OpenSnapshot(env_.get(), path, &last).ok() &&
         SegmentNames(last.views) == last_segments_ &&
         writer->AddSegments(path, last.views).ok();
}

Status HostBackend::Save(SnapshotWriter* writer) {
  const ReaderLock lock(mutex_);
  if (!LinkLast(writer)) {
    ONEEMB_RETURN_IF_ERROR(writer->Restart());
    ONEEMB_RETURN_IF_ERROR(WriteRows(writer));
  }
  const MutexLock last_lock(last_mutex_);
  // If it is never committed, the next one will not find it.
  last_ = writer->name();
  last_segments_ = SegmentNames(writer->views());
  last_version_ = version_;
  return {};
}

Status HostBackend::Load(const std::string& path, const Snapshot& snapshot) {
  std::unique_ptr<HostTier> fresh;
  ONEEMB_RETURN_IF_ERROR(HostTier::Open(options_, &fresh));
  RowIterator rows(env_, snapshot.views);
  RowBatch batch;
  for (;;) {
    ONEEMB_RETURN_IF_ERROR(rows.Next(&batch));
    if (!batch.bad.empty()) return batch.bad.front();
    if (batch.empty()) break;
    ONEEMB_RETURN_IF_ERROR(fresh->Put(batch.keys.data(), batch.rows.data(),
                                      static_cast<int64_t>(batch.keys.size())));
  }
  if (fresh->size() != snapshot.manifest.num_rows) {
    return {StatusKind::kCorruption, path + ": a row is there twice"};
  }
  const WriterLock lock(mutex_);
  ++version_;
  tier_ = std::move(fresh);
  return {};
}

}  // namespace oneemb
