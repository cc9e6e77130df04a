#include "store/compaction.h"

#include "store/files.h"

namespace oneemb {

Status Compactor::Step(SegmentMap* map, bool only_urgent, bool* worked) {
  const Victim victim = map->PickVictim(utilisation_, only_urgent);
  *worked = victim.place >= 0;
  if (!*worked) return {};
  const std::string path = JoinPath(folder_, victim.view.segment->name);
  if (victim.live > 0) ONEEMB_RETURN_IF_ERROR(MoveRows(map, victim));
  map->Remove(victim.place);
  ++steps_;
  // Readers in flight keep the open file. A name that stays costs space until
  // the store is opened again, and nothing else.
  (void)env_->Remove(path);
  return {};
}

Status Compactor::MoveRows(SegmentMap* map, const Victim& victim) {
  SegmentScan scan(victim.view.segment, victim.view.live);
  RowBatch batch;
  Status damaged;
  for (;;) {
    ONEEMB_RETURN_IF_ERROR(scan.Next(env_, kCompactionReadBytes, &batch));
    if (batch.empty()) break;
    if (damaged.ok() && !batch.bad.empty()) damaged = batch.bad.front();
    ONEEMB_RETURN_IF_ERROR(MoveBatch(map, victim, batch));
  }
  // When the damaged row dies, or has died since, the segment is emptied.
  if (!damaged.ok()) map->Pin(victim.place);
  return damaged;
}

Status Compactor::MoveBatch(SegmentMap* map, const Victim& victim,
                            const RowBatch& batch) {
  if (batch.keys.empty()) return {};
  const KeySpan keys{batch.keys.data(),
                     static_cast<int64_t>(batch.keys.size())};
  std::vector<uint64_t> to;
  ONEEMB_RETURN_IF_ERROR(
      log_.Append(map, keys, KeyParts(keys), batch.rows.data(), &to));
  std::vector<uint64_t> from;
  from.reserve(batch.slots.size());
  for (const int64_t slot : batch.slots) {
    from.push_back(map->Location(victim.place, slot));
  }
  const Status moved = map->Move(keys, from.data(), to.data());
  log_.Settle(map);
  return moved;
}

}  // namespace oneemb
