// The checksum of many positions of a batch at once.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include "core/bucket.h"
#include "core/checksum.h"
#include "core/ids.h"
#include "core/macros.h"
#include "cpu/parallel.h"

namespace oneemb {

// What can be told of the slots of some positions.
struct SlotScan {
  uint32_t checksum = 0;
  // The lowest and the highest slot, kSlotMissing and its like included. Those
  // of no positions at all: below no slot, and above none.
  int32_t lowest = std::numeric_limits<int32_t>::max();
  int32_t highest = kSlotMissing;

  void Add(const SlotScan& other) {
    checksum += other.checksum;
    lowest = std::min(lowest, other.lowest);
    highest = std::max(highest, other.highest);
  }
};

namespace checksum_internal {

// `n` positions of one microbatch, from `position` on: the table of id i is
// tables[i * kStep].
template <int kWords, int kStep>
SlotScan ScanRun(const uint32_t* ONEEMB_RESTRICT words,
                 const int32_t* ONEEMB_RESTRICT tables,
                 const int32_t* ONEEMB_RESTRICT slots, uint32_t position,
                 int64_t n) {
  // Plain locals: the compiler does not vectorise sums that live in a struct.
  uint32_t checksum = 0;
  int32_t lowest = SlotScan{}.lowest;
  int32_t highest = kSlotMissing;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t low = words[i * kWords];
    const uint32_t high = kWords == 2 ? words[i * kWords + kWords - 1] : 0;
    checksum += PositionChecksum(position + static_cast<uint32_t>(i), low, high,
                                 tables[i * kStep], slots[i]);
    lowest = std::min(lowest, slots[i]);
    highest = std::max(highest, slots[i]);
  }
  return {checksum, lowest, highest};
}

}  // namespace checksum_internal

// Scans ids[range], whose slots are slots[range], in runs that need no division
// an id.
inline SlotScan ScanSlots(const IdsView& ids, const int32_t* slots,
                          Range range) {
  using checksum_internal::ScanRun;
  const bool one_table = ids.table_period == 1;
  const auto scan_run = ids.words_per_id == 1
                            ? (one_table ? ScanRun<1, 0> : ScanRun<1, 1>)
                            : (one_table ? ScanRun<2, 0> : ScanRun<2, 1>);
  SlotScan scan;
  for (int64_t i = range.begin; i < range.end;) {
    const int64_t within = i % ids.batch_size;
    const int64_t column = within % ids.table_period;
    const int64_t row = i / ids.batch_size * ids.table_period;
    const int64_t left =
        one_table ? ids.batch_size - within : ids.table_period - column;
    const int64_t n = std::min(left, range.end - i);
    scan.Add(scan_run(ids.words + i * ids.words_per_id,
                      ids.table_ids + row + column, slots + i,
                      static_cast<uint32_t>(within), n));
    i += n;
  }
  return scan;
}

}  // namespace oneemb
