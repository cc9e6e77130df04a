// All rows on SSD.
#pragma once

#include <memory>
#include <string>

#include "store/backend.h"
#include "store/ssd_tier.h"

namespace oneemb {

class SsdBackend final : public Backend {
 public:
  static Status Open(std::shared_ptr<Env> env, const std::string& root,
                     const SsdTierOptions& options,
                     std::unique_ptr<Backend>* backend);

  Status Fetch(KeySpan keys, char* rows, uint8_t* found,
               Access access) override;
  Status Put(KeySpan keys, const char* rows) override;
  Status Erase(KeySpan keys, uint8_t* erased) override;
  int64_t size() const override { return tier_->size(); }
  void AddStats(StoreStats* stats) const override;
  Status Iterate(std::unique_ptr<RowSource>* rows) override;
  Status Compact() override { return tier_->Compact(); }
  Status Save(SnapshotWriter* writer) override;
  Status Load(const std::string& path, const Snapshot& snapshot) override;

 private:
  explicit SsdBackend(std::unique_ptr<SsdTier> tier) : tier_(std::move(tier)) {}

  const std::unique_ptr<SsdTier> tier_;
};

// The steps that a cache over an SSD shares with it.
void AddSsdStats(const SsdTier& tier, StoreStats* stats);
Status SaveSsd(SsdTier* tier, SnapshotWriter* writer);
Status LoadSsd(SsdTier* tier, const std::string& path,
               const Snapshot& snapshot);

}  // namespace oneemb
