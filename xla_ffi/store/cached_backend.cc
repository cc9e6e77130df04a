#include "store/cached_backend.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "store/ssd_backend.h"

namespace oneemb {
namespace {

// Dirty rows are written in chunks of about this many bytes.
constexpr int64_t kChunkBytes = int64_t{8} << 20;

// A batch that is put together row by row.
struct Rows {
  std::vector<Key> keys;
  std::vector<char> rows;

  KeySpan span() const {
    return {keys.data(), static_cast<int64_t>(keys.size())};
  }
  void Add(Key key, const char* row, int64_t row_bytes) {
    keys.push_back(key);
    rows.insert(rows.end(), row, row + row_bytes);
  }
};

}  // namespace

// What a fetch did not find in the cache, and what the SSD said.
struct CachedBackend::Misses {
  std::vector<Key> keys;
  std::vector<int64_t> items;  // their places in the caller's batch
  std::vector<char> rows;
  std::vector<uint8_t> found;
};

Status CachedBackend::Open(std::shared_ptr<Env> env, const std::string& root,
                           const HostTierOptions& cache,
                           const SsdTierOptions& ssd,
                           std::unique_ptr<Backend>* backend) {
  std::unique_ptr<SsdTier> tier;
  std::unique_ptr<HostCache> rows;
  ONEEMB_RETURN_IF_ERROR(HostCache::Open(cache, &rows));
  ONEEMB_RETURN_IF_ERROR(
      SsdTier::Open(std::move(env), SegmentFolder(root), ssd, &tier));
  backend->reset(
      new CachedBackend(cache.row_bytes, std::move(tier), std::move(rows)));
  return {};
}

// --- reading ---

Status CachedBackend::Fetch(KeySpan keys, char* rows, uint8_t* found,
                            Access access) {
  const MutexLock lock(mutex_);
  if (access == Access::kTrain) {
    cache_->Fetch(keys.data, keys.size, rows, found);
  } else {
    cache_->Peek(keys.data, keys.size, rows, found);
  }
  Misses misses;
  for (int64_t i = 0; i < keys.size; ++i) {
    if (found[i] != 0) continue;
    misses.keys.push_back(keys[i]);
    misses.items.push_back(i);
  }
  if (misses.keys.empty()) return {};
  const auto width = static_cast<size_t>(row_bytes_);
  misses.rows.resize(misses.keys.size() * width);
  misses.found.resize(misses.keys.size());
  Status status = ssd_->Fetch(
      {misses.keys.data(), static_cast<int64_t>(misses.keys.size())},
      misses.rows.data(), misses.found.data());
  for (size_t m = 0; m < misses.keys.size(); ++m) {
    const int64_t item = misses.items[m];
    found[item] = misses.found[m];
    if (found[item] != kRowFound) continue;
    std::memcpy(rows + item * row_bytes_, misses.rows.data() + m * width,
                width);
  }
  if (access == Access::kTrain) Keep(misses);
  return status;
}

// Keeps in the cache what was read, as far as there is room for it. Room that
// cannot be made (the disk is full) costs speed only.
void CachedBackend::Keep(const Misses& misses) {
  Rows read;
  const auto most = static_cast<size_t>(cache_->capacity() / 2);
  for (size_t m = 0; m < misses.keys.size() && read.keys.size() < most; ++m) {
    if (misses.found[m] != kRowFound) continue;
    read.Add(misses.keys[m],
             misses.rows.data() + m * static_cast<size_t>(row_bytes_),
             row_bytes_);
  }
  const auto count = static_cast<int64_t>(read.keys.size());
  if (count == 0 || !MakeRoom(count).ok()) return;
  std::vector<uint8_t> taken(read.keys.size());
  cache_->Insert(read.keys.data(), read.rows.data(), count, false,
                 taken.data());
}

// --- writing ---

// Writes rows of the cache to the SSD.
Status CachedBackend::WriteToSsd(KeySpan keys, const char* rows) {
  const int64_t before = ssd_->size();
  ONEEMB_RETURN_IF_ERROR(ssd_->Put(keys, rows));
  only_cached_ -= ssd_->size() - before;
  return {};
}

// Evicts, so that about this many rows have room.
Status CachedBackend::MakeRoom(int64_t rows) {
  Rows victims;
  ONEEMB_RETURN_IF_ERROR(cache_->MakeRoom(rows, &victims.keys, &victims.rows));
  const Status written = WriteToSsd(victims.span(), victims.rows.data());
  if (written.ok()) {
    cache_->DropVictims();
  } else {
    cache_->KeepVictims();
  }
  return written;
}

Status CachedBackend::Put(KeySpan keys, const char* rows) {
  const MutexLock lock(mutex_);
  if (keys.size > cache_->capacity() / 2) return PutPast(keys, rows);
  ONEEMB_RETURN_IF_ERROR(MakeRoom(keys.size));
  return InsertDirty(keys, rows);
}

// Puts rows into the cache. Those for which it has no room all the same, which
// takes keys made to collide, go past it.
Status CachedBackend::InsertDirty(KeySpan keys, const char* rows) {
  std::vector<uint8_t> on_ssd(static_cast<size_t>(keys.size));
  ssd_->Contains(keys, on_ssd.data());
  Rows refused;
  for (const uint8_t group : {kRowAbsent, kRowFound}) {
    Rows some;
    for (int64_t i = 0; i < keys.size; ++i) {
      if (on_ssd[static_cast<size_t>(i)] != group) continue;
      some.Add(keys[i], rows + i * row_bytes_, row_bytes_);
    }
    std::vector<uint8_t> taken(some.keys.size());
    const int64_t before = cache_->size();
    cache_->Insert(some.keys.data(), some.rows.data(), some.span().size, true,
                   taken.data());
    if (group == kRowAbsent) only_cached_ += cache_->size() - before;
    for (size_t i = 0; i < taken.size(); ++i) {
      if (taken[i] != 0) continue;
      refused.Add(some.keys[i],
                  some.rows.data() + i * static_cast<size_t>(row_bytes_),
                  row_bytes_);
    }
  }
  return PutPast(refused.span(), refused.rows.data());
}

// Puts rows on the SSD and out of the cache.
Status CachedBackend::PutPast(KeySpan keys, const char* rows) {
  if (keys.size == 0) return {};
  std::vector<uint8_t> on_ssd(static_cast<size_t>(keys.size));
  ssd_->Contains(keys, on_ssd.data());
  ONEEMB_RETURN_IF_ERROR(ssd_->Put(keys, rows));
  for (int64_t i = 0; i < keys.size; ++i) {
    const int64_t before = cache_->size();
    cache_->Erase(keys.data + i, 1);
    if (on_ssd[static_cast<size_t>(i)] == kRowAbsent) {
      only_cached_ -= before - cache_->size();
    }
  }
  return {};
}

Status CachedBackend::Erase(KeySpan keys, uint8_t* erased) {
  const MutexLock lock(mutex_);
  std::vector<uint8_t> on_ssd(static_cast<size_t>(keys.size));
  ssd_->Contains(keys, on_ssd.data());
  ssd_->Erase(keys, erased);
  for (int64_t i = 0; i < keys.size; ++i) {
    const int64_t before = cache_->size();
    cache_->Erase(keys.data + i, 1);
    if (cache_->size() == before) continue;
    erased[i] = 1;
    if (on_ssd[static_cast<size_t>(i)] == kRowAbsent) --only_cached_;
  }
  return {};
}

// --- all rows ---

// Brings the SSD up to date. The rows stay in the cache.
Status CachedBackend::WriteDirty() {
  if (cache_->dirty() == 0) return {};
  constexpr int64_t kLeast = 5;  // what ScanDirty wants
  const int64_t most = std::max(kLeast, kChunkBytes / row_bytes_);
  std::vector<Key> keys(static_cast<size_t>(most));
  std::vector<char> rows(static_cast<size_t>(most * row_bytes_));
  uint64_t cursor = 0;
  for (;;) {
    const int64_t count =
        cache_->ScanDirty(&cursor, most, keys.data(), rows.data());
    if (count == 0) break;
    ONEEMB_RETURN_IF_ERROR(WriteToSsd({keys.data(), count}, rows.data()));
  }
  cache_->MarkClean();
  return {};
}

int64_t CachedBackend::size() const {
  const MutexLock lock(mutex_);
  return ssd_->size() + only_cached_;
}

void CachedBackend::AddStats(StoreStats* stats) const {
  const MutexLock lock(mutex_);
  AddSsdStats(*ssd_, stats);
  const HostCacheStats cache = cache_->stats();
  stats->rows += only_cached_;
  stats->memory_bytes += cache_->bytes();
  stats->cached_rows += cache_->size();
  stats->dirty_rows += cache_->dirty();
  stats->hits += cache.hits;
  stats->misses += cache.misses;
}

Status CachedBackend::Iterate(std::unique_ptr<RowSource>* rows) {
  const MutexLock lock(mutex_);
  ONEEMB_RETURN_IF_ERROR(WriteDirty());
  *rows = ssd_->Iterate();
  return {};
}

Status CachedBackend::Save(SnapshotWriter* writer) {
  const MutexLock lock(mutex_);
  ONEEMB_RETURN_IF_ERROR(WriteDirty());
  return SaveSsd(ssd_.get(), writer);
}

Status CachedBackend::Load(const std::string& path, const Snapshot& snapshot) {
  const MutexLock lock(mutex_);
  ONEEMB_RETURN_IF_ERROR(LoadSsd(ssd_.get(), path, snapshot));
  cache_->Clear();
  only_cached_ = 0;
  return {};
}

}  // namespace oneemb
