// All rows on SSD, and a cache of them in host memory.
//
// The cache is written back: a row that was put lives in the cache alone until
// it is evicted or saved. So the two together hold every row, and one lock
// keeps them together: shared by fetches, which let go of it before they read
// from the SSD, and held alone by all that changes.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "store/backend.h"
#include "store/host_cache.h"
#include "store/mutex.h"
#include "store/ssd_tier.h"

namespace oneemb {

class CachedBackend final : public Backend {
 public:
  static Status Open(std::shared_ptr<Env> env, const std::string& root,
                     const HostTierOptions& cache, const SsdTierOptions& ssd,
                     std::unique_ptr<Backend>* backend);

  Status Fetch(KeySpan keys, char* rows, uint8_t* found,
               Access access) override;
  Status Put(KeySpan keys, const char* rows) override;
  Status Erase(KeySpan keys, uint8_t* erased) override;
  int64_t size() const override;
  void AddStats(StoreStats* stats) const override;
  // Writes dirty rows to the SSD first.
  Status Iterate(std::unique_ptr<RowSource>* rows) override;
  Status Compact() override { return ssd_->Compact(); }
  Status Save(SnapshotWriter* writer) override;
  Status Load(const std::string& path, const Snapshot& snapshot) override;

 private:
  CachedBackend(int64_t row_bytes, std::unique_ptr<SsdTier> ssd,
                std::unique_ptr<HostCache> cache)
      : row_bytes_(row_bytes), ssd_(std::move(ssd)), cache_(std::move(cache)) {}

  struct Rows;
  struct Misses;

  void Look(KeySpan keys, char* rows, uint8_t* found, Access access,
            Misses* misses) ONEEMB_EXCLUDES(mutex_);
  void Keep(const Misses& misses) ONEEMB_EXCLUDES(mutex_);
  bool Insert(const Rows& some, bool dirty) ONEEMB_REQUIRES(mutex_);
  Status MakeRoom(int64_t rows) ONEEMB_REQUIRES(mutex_);
  Status WriteToSsd(KeySpan keys, const char* rows) ONEEMB_REQUIRES(mutex_);
  Status PutPast(KeySpan keys, const char* rows) ONEEMB_REQUIRES(mutex_);
  Status InsertDirty(KeySpan keys, const char* rows) ONEEMB_REQUIRES(mutex_);
  Status WriteDirty() ONEEMB_REQUIRES(mutex_);

  const int64_t row_bytes_;
  const std::unique_ptr<SsdTier> ssd_;
  mutable SharedMutex mutex_;
  std::unique_ptr<HostCache> cache_ ONEEMB_GUARDED_BY(mutex_);
  // Rows that the SSD has no version of.
  int64_t only_cached_ ONEEMB_GUARDED_BY(mutex_) = 0;
  std::vector<uint8_t> taken_ ONEEMB_GUARDED_BY(mutex_);  // what Insert is told
};

}  // namespace oneemb
