#include "store/ssd_backend.h"

#include <utility>
#include <vector>

namespace oneemb {

Status SsdBackend::Open(std::shared_ptr<Env> env, const std::string& root,
                        const SsdTierOptions& options,
                        std::unique_ptr<Backend>* backend) {
  std::unique_ptr<SsdTier> tier;
  ONEEMB_RETURN_IF_ERROR(
      SsdTier::Open(std::move(env), SegmentFolder(root), options, &tier));
  backend->reset(new SsdBackend(std::move(tier)));
  return {};
}

Status SsdBackend::Fetch(KeySpan keys, char* rows, uint8_t* found,
                         Access access) {
  (void)access;  // a read leaves no trace here
  return tier_->Fetch(keys, rows, found);
}

Status SsdBackend::Put(KeySpan keys, const char* rows) {
  return tier_->Put(keys, rows);
}

Status SsdBackend::Erase(KeySpan keys, uint8_t* erased) {
  tier_->Erase(keys, erased);
  return {};
}

void SsdBackend::AddStats(StoreStats* stats) const {
  AddSsdStats(*tier_, stats);
}

Status SsdBackend::Iterate(std::unique_ptr<RowSource>* rows) {
  *rows = tier_->Iterate();
  return {};
}

Status SsdBackend::Save(SnapshotWriter* writer) {
  return SaveSsd(tier_.get(), writer);
}

Status SsdBackend::Load(const std::string& path, const Snapshot& snapshot) {
  return LoadSsd(tier_.get(), path, snapshot);
}

void AddSsdStats(const SsdTier& tier, StoreStats* stats) {
  const SsdTier::Stats own = tier.stats();
  stats->rows += own.rows;
  stats->memory_bytes += own.memory_bytes;
  stats->index_bytes += own.map.index_bytes;
  stats->segments += own.map.segments;
  stats->slots += own.map.slots;
  stats->live_slots += own.map.live;
  stats->damaged_segments += own.map.pinned;
  stats->put_bytes += own.put_bytes;
  stats->moved_bytes += own.moved_bytes;
  stats->compactions += own.compactions;
  stats->direct_io = own.direct_io;
}

Status SaveSsd(SsdTier* tier, SnapshotWriter* writer) {
  return tier->Capture([&](const std::vector<SegmentView>& views) {
    return writer->AddSegments(tier->folder(), views);
  });
}

Status LoadSsd(SsdTier* tier, const std::string& path,
               const Snapshot& snapshot) {
  return tier->Replace([&](std::shared_ptr<SegmentMap>* map) {
    return BuildMap(tier->env(), path, snapshot, tier->folder(),
                    tier->slots_per_segment(), map);
  });
}

}  // namespace oneemb
