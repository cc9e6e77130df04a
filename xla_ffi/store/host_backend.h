// All rows in host memory; the disk has snapshots only.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "store/backend.h"
#include "store/host_tier.h"
#include "store/mutex.h"
#include "store/ssd_tier.h"

namespace oneemb {

class HostBackend final : public Backend {
 public:
  // `segments` says how snapshots are written.
  static Status Open(std::shared_ptr<Env> env, const std::string& root,
                     const HostTierOptions& options,
                     const SsdTierOptions& segments,
                     std::unique_ptr<Backend>* backend);

  Status Fetch(KeySpan keys, char* rows, uint8_t* found,
               Access access) override;
  Status Put(KeySpan keys, const char* rows) override;
  Status Erase(KeySpan keys, uint8_t* erased) override;
  int64_t size() const override;
  void AddStats(StoreStats* stats) const override;
  // Next fails once rows were put or erased: there is no copy of this moment.
  Status Iterate(std::unique_ptr<RowSource>* rows) override;
  Status Compact() override { return {}; }
  // Rows are written anew unless nothing was put or erased since the last
  // snapshot, which is then linked to.
  Status Save(SnapshotWriter* writer) override;
  Status Load(const std::string& path, const Snapshot& snapshot) override;

 private:
  class Source;

  HostBackend(std::shared_ptr<Env> env, std::string root,
              const HostTierOptions& options, const SsdTierOptions& segments);

  Status WriteRows(SnapshotWriter* writer) const ONEEMB_REQUIRES_SHARED(mutex_);
  bool LinkLast(SnapshotWriter* writer) ONEEMB_REQUIRES_SHARED(mutex_);

  const std::shared_ptr<Env> env_;
  const std::string root_;
  const HostTierOptions options_;
  const SsdTierOptions segments_;
  mutable SharedMutex mutex_;
  std::unique_ptr<HostTier> tier_ ONEEMB_GUARDED_BY(mutex_);
  uint64_t version_ ONEEMB_GUARDED_BY(mutex_) = 0;  // changes with each write

  // The newest snapshot, its segments, and the version that it has.
  Mutex last_mutex_;
  std::string last_ ONEEMB_GUARDED_BY(last_mutex_);
  std::vector<std::string> last_segments_ ONEEMB_GUARDED_BY(last_mutex_);
  uint64_t last_version_ ONEEMB_GUARDED_BY(last_mutex_) = 0;
};

}  // namespace oneemb
