// What the CUDA library, which is another shared library, calls of this one.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "store/taken_rows.h"
#include "tier/device_tier.h"

namespace oneemb {

struct TierApi {
  std::shared_ptr<TableStore> (*find)(const std::string& name);

  // As in tier/cached_table.h.
  bool (*stage)(const TieredTable& table);
  bool (*prefetch)(const TieredTable& table);
  bool (*write_down)(const TieredTable& table);
  bool (*flush)(const TieredTable& table);
  void (*read_below)(const TieredTable& table, const std::vector<Key>& keys,
                     TakenRows* rows);
  bool (*may_read)(const TieredTable& table);
  void (*count_lookup)(const TieredTable& table, bool stale, int64_t unstaged);

  // Whether the rows of a table may be changed, which counts it if not. Of an
  // update that changes none the Store need not know.
  bool (*may_update)(const TieredTable& table, bool changes_rows);
  bool (*may_write)(const TieredTable& table);
};

const TierApi* GetTierApi();

}  // namespace oneemb
