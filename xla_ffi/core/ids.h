// A batch of ids as it crosses the FFI border, and how they become keys.
#pragma once

#include <cstdint>

#include "core/bucket.h"
#include "core/macros.h"

namespace oneemb {

// `size` ids, made of equal microbatches of `batch_size`. Inside a microbatch
// the table of id i is its table_ids[i % table_period]; each microbatch has
// its own table_period table ids.
struct IdsView {
  const uint32_t* words;  // [size, words_per_id], low word first
  int words_per_id;       // 1 or 2
  int64_t size;
  int64_t batch_size;
  const int32_t* table_ids;
  int64_t table_period;

  ONEEMB_HD int64_t num_table_ids() const {
    return batch_size == 0 ? 0 : size / batch_size * table_period;
  }

  ONEEMB_HD uint64_t Id(int64_t i) const {
    if (words_per_id == 1) return words[i];
    return words[2 * i] | (uint64_t{words[2 * i + 1]} << 32);
  }

  ONEEMB_HD int32_t Table(int64_t i) const {
    if (table_period == 1 && batch_size == size) return table_ids[0];
    if (size > UINT32_MAX) {
      const int64_t batch = i / batch_size;
      const int64_t within = i % batch_size;
      return table_ids[batch * table_period + within % table_period];
    }
    // 32-bit divisions take a fraction of the time.
    const uint32_t position = static_cast<uint32_t>(i);
    const uint32_t batch = position / static_cast<uint32_t>(batch_size);
    const uint32_t within = position % static_cast<uint32_t>(batch_size);
    return table_ids[batch * table_period +
                     within % static_cast<uint32_t>(table_period)];
  }
};

// Walks the ids from `begin` on without a division a step.
class IdCursor {
 public:
  IdCursor(const IdsView& ids, int64_t begin) : ids_(ids), i_(begin) {
    if (begin >= ids.size) return;
    within_ = begin % ids.batch_size;
    base_ = begin / ids.batch_size * ids.table_period;
    column_ = within_ % ids.table_period;
  }

  uint64_t id() const { return ids_.Id(i_); }
  int32_t table() const { return ids_.table_ids[base_ + column_]; }

  void Next() {
    ++i_;
    if (++column_ == ids_.table_period) column_ = 0;
    if (++within_ == ids_.batch_size) {
      within_ = 0;
      column_ = 0;
      base_ += ids_.table_period;
    }
  }

  // The next `count` ids and their tables.
  void Take(int64_t count, uint64_t* ids, int32_t* tables) {
    if (count == 0) return;
    const uint32_t* const words = ids_.words + i_ * ids_.words_per_id;
    if (ids_.words_per_id == 1) {
      for (int64_t k = 0; k < count; ++k) ids[k] = words[k];
    } else {
      for (int64_t k = 0; k < count; ++k) {
        ids[k] = words[2 * k] | (uint64_t{words[2 * k + 1]} << 32);
      }
    }
    if (ids_.table_period == 1 && within_ + count < ids_.batch_size) {
      const int32_t all = table();
      for (int64_t k = 0; k < count; ++k) tables[k] = all;
      i_ += count;
      within_ += count;
      return;
    }
    for (int64_t k = 0; k < count; ++k, Next()) tables[k] = table();
  }

 private:
  const IdsView& ids_;
  int64_t i_;
  int64_t within_ = 0;
  int64_t base_ = 0;
  int64_t column_ = 0;
};

// Which (table, id) pairs are keys.
struct KeyRules {
  int32_t num_tables;
  bool shared_keys;  // the same id in two tables is one row
  bool has_padding;
  uint64_t padding_id;

  // 0 for a key, else kSlotPadding or kSlotBadTable.
  ONEEMB_HD int32_t Reject(uint64_t id, int32_t table) const {
    if (has_padding && id == padding_id) return kSlotPadding;
    if (table < 0 || table >= num_tables) return kSlotBadTable;
    return 0;
  }

  ONEEMB_HD Key MakeKey(uint64_t id, int32_t table) const {
    return {id, shared_keys ? uint16_t{0} : static_cast<uint16_t>(table)};
  }
};

}  // namespace oneemb
