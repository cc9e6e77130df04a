#include "store/compaction.h"

#include <algorithm>
#include <utility>

#include "store/files.h"

namespace oneemb {

Status Compactor::Step(SegmentMap* map, bool only_urgent, bool* worked) {
  const std::vector<Victim> victims = map->PickVictims(policy_, only_urgent);
  *worked = !victims.empty();
  RowsToMove rows;
  std::vector<int64_t> damaged;
  Status status;
  for (const Victim& victim : victims) {
    Status bad;
    ONEEMB_RETURN_IF_ERROR(ReadRows(map, victim, &rows, &bad));
    if (bad.ok()) continue;
    damaged.push_back(victim.place);
    if (status.ok()) status = std::move(bad);
  }
  ONEEMB_RETURN_IF_ERROR(WriteRows(map, &rows));
  for (const Victim& victim : victims) {
    if (std::count(damaged.begin(), damaged.end(), victim.place) == 0) {
      Remove(map, victim);
    } else {
      // When the damaged row dies, or has died since, the segment is emptied.
      map->Pin(victim.place);
    }
  }
  return status;
}

void Compactor::Remove(SegmentMap* map, const Victim& victim) {
  const std::string path = JoinPath(folder_, victim.view.segment->name);
  map->Remove(victim.place);
  ++steps_;
  // Readers in flight keep the open file. A name that stays costs space until
  // the store is opened again, and nothing else.
  (void)env_->Remove(path);
}

// Adds what lives in a segment to *rows, and moves those when they are many;
// *bad is that of its first damaged row.
Status Compactor::ReadRows(SegmentMap* map, const Victim& victim,
                           RowsToMove* rows, Status* bad) {
  if (victim.live == 0) return {};
  SegmentScan scan(victim.view.segment, victim.view.live);
  RowBatch batch;
  for (;;) {
    ONEEMB_RETURN_IF_ERROR(scan.Next(env_, kCompactionReadBytes, &batch));
    if (batch.empty()) return {};
    if (bad->ok() && !batch.bad.empty()) *bad = batch.bad.front();
    const size_t bytes = rows->rows.size() + batch.rows.size();
    if (bytes > size_t{kCompactionReadBytes}) {
      ONEEMB_RETURN_IF_ERROR(WriteRows(map, rows));
    }
    rows->keys.insert(rows->keys.end(), batch.keys.begin(), batch.keys.end());
    rows->rows.insert(rows->rows.end(), batch.rows.begin(), batch.rows.end());
    for (const int64_t slot : batch.slots) {
      rows->from.push_back(map->Location(victim.place, slot));
    }
  }
}

// Moves all of *rows, which is empty then.
Status Compactor::WriteRows(SegmentMap* map, RowsToMove* rows) {
  if (rows->keys.empty()) return {};
  const KeySpan keys{rows->keys.data(),
                     static_cast<int64_t>(rows->keys.size())};
  std::vector<uint64_t> to;
  ONEEMB_RETURN_IF_ERROR(
      log_.Append(map, keys, KeyParts(keys), rows->rows.data(), &to));
  const Status moved = map->Move(keys, rows->from.data(), to.data());
  log_.Settle(map);
  rows->keys.clear();
  rows->rows.clear();
  rows->from.clear();
  return moved;
}

}  // namespace oneemb
