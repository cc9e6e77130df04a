#include "store/cached_backend.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <new>
#include <utility>

#include "store/ssd_backend.h"

namespace oneemb {
namespace {

// Dirty rows are written in chunks of about this many bytes.
constexpr int64_t kChunkBytes = int64_t{8} << 20;

}  // namespace

// A batch that is put together row by row.
struct CachedBackend::Rows {
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

// What a fetch did not find in the cache, and what the SSD said.
struct CachedBackend::Misses {
  std::vector<Key> keys;
  std::vector<int64_t> items;  // their places in the caller's batch
  std::vector<char> rows;
  std::vector<uint8_t> found;
  LocatedRows located;

  KeySpan span() const {
    return {keys.data(), static_cast<int64_t>(keys.size())};
  }
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

// The rows of the cache, and where the SSD has the others: those of one moment.
void CachedBackend::Look(KeySpan keys, char* rows, uint8_t* found,
                         Access access, Misses* misses) {
  const ReaderLock lock(mutex_);
  if (access == Access::kTrain) {
    cache_->Fetch(keys.data, keys.size, rows, found);
  } else {
    cache_->Peek(keys.data, keys.size, rows, found);
  }
  for (int64_t i = 0; i < keys.size; ++i) {
    if (found[i] != 0) continue;
    misses->keys.push_back(keys[i]);
    misses->items.push_back(i);
  }
  if (!misses->keys.empty()) ssd_->Locate(misses->span(), &misses->located);
}

// Reads with no lock held: puts and other fetches go on meanwhile.
Status CachedBackend::Fetch(KeySpan keys, char* rows, uint8_t* found,
                            Access access) {
  Misses misses;
  Look(keys, rows, found, access, &misses);
  if (misses.keys.empty()) return {};
  const auto width = static_cast<size_t>(row_bytes_);
  misses.rows.resize(misses.keys.size() * width);
  misses.found.resize(misses.keys.size());
  Status status = ssd_->Read(misses.located, misses.span(), misses.rows.data(),
                             misses.found.data());
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

// Keeps in the cache what was read, as far as there is room for it and it still
// is what the SSD has. Room that cannot be made (the disk is full) costs speed
// only.
void CachedBackend::Keep(const Misses& misses) {
  std::vector<uint8_t> current(misses.keys.size());
  Rows read;
  const WriterLock lock(mutex_);
  ssd_->CheckCurrent(misses.located, misses.span(), current.data());
  const auto most = static_cast<size_t>(cache_->capacity() / 2);
  for (size_t m = 0; m < misses.keys.size() && read.keys.size() < most; ++m) {
    if (misses.found[m] != kRowFound || current[m] == 0) continue;
    read.Add(misses.keys[m],
             misses.rows.data() + m * static_cast<size_t>(row_bytes_),
             row_bytes_);
  }
  const auto count = static_cast<int64_t>(read.keys.size());
  if (count == 0) return;
  const int64_t missing = cache_->CountMissing(read.keys.data(), count);
  if (MakeRoom(missing).ok()) (void)Insert(read, false);
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
  Status written;
  try {
    written = WriteToSsd(victims.span(), victims.rows.data());
  } catch (const std::bad_alloc&) {
    cache_->KeepVictims();
    throw;
  }
  if (written.ok()) {
    cache_->DropVictims();
  } else {
    cache_->KeepVictims();
  }
  return written;
}

Status CachedBackend::Put(KeySpan keys, const char* rows) {
  const WriterLock lock(mutex_);
  if (keys.size > cache_->capacity() / 2) return PutPast(keys, rows);
  ONEEMB_RETURN_IF_ERROR(MakeRoom(cache_->CountMissing(keys.data, keys.size)));
  // What made room may have been rows of this very batch.
  if (cache_->CountMissing(keys.data, keys.size) > cache_->free_rows()) {
    ONEEMB_RETURN_IF_ERROR(MakeRoom(keys.size));
  }
  return InsertDirty(keys, rows);
}

// Whether all found room.
bool CachedBackend::Insert(const Rows& some, bool dirty) {
  taken_.assign(some.keys.size(), 1);
  cache_->Insert(some.keys.data(), some.rows.data(), some.span().size, dirty,
                 taken_.data());
  return std::count(taken_.begin(), taken_.end(), uint8_t{0}) == 0;
}

// Puts a batch into the cache, or, when it has no room for all of it, past it.
// That takes rows that are pinned or keys made to collide.
Status CachedBackend::InsertDirty(KeySpan keys, const char* rows) {
  const auto count = static_cast<size_t>(keys.size);
  std::vector<uint8_t> missing(count);
  std::vector<uint8_t> on_ssd(count);
  taken_.reserve(count);
  (void)cache_->CountMissing(keys.data, keys.size, missing.data());
  ssd_->Contains(keys, on_ssd.data());
  // New to the store, new to the cache alone, and in the cache.
  std::array<Rows, 3> groups;
  for (size_t i = 0; i < count; ++i) {
    const size_t group = missing[i] == 0 ? 2 : on_ssd[i] == kRowFound ? 1 : 0;
    groups[group].Add(keys[static_cast<int64_t>(i)],
                      rows + static_cast<int64_t>(i) * row_bytes_, row_bytes_);
  }
  const int64_t before = cache_->size();
  bool all = Insert(groups[0], true);
  const int64_t new_to_store = cache_->size() - before;
  all = Insert(groups[1], true) && all;
  if (!all) {
    for (const size_t g : {0, 1}) {
      cache_->Erase(groups[g].keys.data(), groups[g].span().size);
    }
    return PutPast(keys, rows);
  }
  only_cached_ += new_to_store;
  (void)Insert(groups[2], true);  // they are there, so they have room
  return {};
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
  const WriterLock lock(mutex_);
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
  // No more memory than is needed: filling 8 MiB takes longer than a small
  // save.
  const int64_t most =
      std::max(kLeast, std::min(cache_->dirty(), kChunkBytes / row_bytes_));
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
  const ReaderLock lock(mutex_);
  return ssd_->size() + only_cached_;
}

void CachedBackend::AddStats(StoreStats* stats) const {
  const ReaderLock lock(mutex_);
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
  const WriterLock lock(mutex_);
  ONEEMB_RETURN_IF_ERROR(WriteDirty());
  *rows = ssd_->Iterate();
  return {};
}

Status CachedBackend::Save(SnapshotWriter* writer) {
  const WriterLock lock(mutex_);
  ONEEMB_RETURN_IF_ERROR(WriteDirty());
  return SaveSsd(ssd_.get(), writer);
}

Status CachedBackend::Load(const std::string& path, const Snapshot& snapshot) {
  const WriterLock lock(mutex_);
  ONEEMB_RETURN_IF_ERROR(LoadSsd(ssd_.get(), path, snapshot));
  cache_->Clear();
  only_cached_ = 0;
  return {};
}

}  // namespace oneemb
