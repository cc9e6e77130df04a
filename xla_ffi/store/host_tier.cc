#include "store/host_tier.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <string>
#include <vector>

#include "store/pipeline.h"
#include "store/row_index_state.h"

namespace oneemb {
namespace {

constexpr int64_t kSmallestRow = 4;  // room for the number of another slot
constexpr int64_t kLargestRow = 65536;
constexpr uint64_t kMostSlots = uint64_t{1} << 32;

// Keys that one call of the index works on where they come in blocks.
constexpr int64_t kBlock = 256;
// Keys that are worth a thread.
constexpr int64_t kGrain = 2048;

// Calls copy(i, row) for every slots[i] that is a slot.
template <class Copy>
void ForEachRow(const RowArena& arena, const uint64_t* slots, int64_t n,
                const Copy& copy) {
  const auto prefetch = [&](int64_t i) __attribute__((always_inline)) {
    if (i < n && slots[i] != kNoLocation) {
      PrefetchRow(arena.Row(slots[i]), arena.row_bytes());
    }
  };
  for (int64_t i = 0; i < std::min(n, kPipelineAhead); ++i) prefetch(i);
  for (int64_t i = 0; i < n; ++i) {
    prefetch(i + kPipelineAhead);
    if (slots[i] != kNoLocation) copy(i, arena.Row(slots[i]));
  }
}

}  // namespace

Status CheckHostTierOptions(const HostTierOptions& options) {
  if (options.row_bytes < kSmallestRow || options.row_bytes > kLargestRow) {
    return {StatusKind::kInvalidArgument,
            "row_bytes=" + std::to_string(options.row_bytes) +
                " is not between " + std::to_string(kSmallestRow) + " and " +
                std::to_string(kLargestRow)};
  }
  if (options.budget_bytes <= 0) {
    return {StatusKind::kInvalidArgument,
            "the budget of the host tier is " +
                std::to_string(options.budget_bytes) +
                " bytes; it must be positive"};
  }
  return {};
}

HostTier::HostTier(const HostTierOptions& options, PageSource* pages,
                   Crew* crew)
    : options_(options),
      crew_(crew),
      index_(pages),
      arena_(pages, options.row_bytes) {}

Status HostTier::Open(const HostTierOptions& options,
                      std::unique_ptr<HostTier>* tier, PageSource* pages,
                      Crew* crew) {
  ONEEMB_RETURN_IF_ERROR(CheckHostTierOptions(options));
  tier->reset(new (std::nothrow) HostTier(options, pages, crew));
  if (*tier == nullptr) {
    return {StatusKind::kNoMemory, "no memory for the host tier"};
  }
  return {};
}

void HostTier::Fetch(const Key* keys, int64_t n, char* rows,
                     uint8_t* found) const {
  const int64_t width = options_.row_bytes;
  if (index_.size() == 0) {
    std::fill(found, found + n, uint8_t{0});
    return;
  }
  crew_->ForRanges(n, kGrain, [&](int64_t begin, int64_t end) {
    index_.FindRows(
        keys + begin, end - begin, width,
        [&](uint64_t slot) { return arena_.Row(slot); },
        [&](int64_t i, const char* row) {
          found[begin + i] = row == nullptr ? 0 : 1;
          if (row == nullptr) return;
          memcpy(rows + (begin + i) * width, row, static_cast<size_t>(width));
        });
  });
}

// The rows of a batch that are not there yet.
struct HostTier::NewRows {
  std::vector<Key> keys;
  std::vector<int64_t> positions;  // in the batch
  std::vector<uint64_t> slots;
  // What a row took the place of: one of the same key, earlier in the batch.
  std::vector<uint64_t> replaced;

  int64_t size() const { return static_cast<int64_t>(keys.size()); }
};

uint64_t HostTier::TakeSlot() {
  if (num_free_ == 0) return slots_++;
  const uint64_t slot = first_free_;
  memcpy(&first_free_, arena_.Row(slot), sizeof(first_free_));
  --num_free_;
  return slot;
}

void HostTier::FreeSlot(uint64_t slot) {
  memcpy(arena_.Row(slot), &first_free_, sizeof(first_free_));
  first_free_ = static_cast<uint32_t>(slot);
  ++num_free_;
}

// What the tier takes with `slots` slots in use, those of `fresh` included.
int64_t HostTier::BytesWith(const NewRows& fresh, uint64_t slots) const {
  return index_.BytesAfterReserve(fresh.keys.data(), fresh.size(), slots) +
         arena_.BytesFor(static_cast<int64_t>(slots));
}

// Makes room for new rows; nothing else changes.
Status HostTier::Reserve(const NewRows& fresh) {
  const auto more = static_cast<uint64_t>(fresh.size());
  const uint64_t slots = slots_ + (more > num_free_ ? more - num_free_ : 0);
  if (slots > kMostSlots) {
    return {StatusKind::kNoSpace, "a host tier holds 2^32 rows at most"};
  }
  if (options_.budget_bytes != INT64_MAX) {
    const int64_t needed = BytesWith(fresh, slots);
    if (needed > options_.budget_bytes) {
      return {StatusKind::kNoSpace,
              "the host tier is full: " + std::to_string(size()) + " rows of " +
                  std::to_string(options_.row_bytes) + " bytes and " +
                  std::to_string(more) + " more take " +
                  std::to_string(needed) + " bytes, index included; its " +
                  "budget is " + std::to_string(options_.budget_bytes)};
    }
  }
  ONEEMB_RETURN_IF_ERROR(
      index_.Reserve(fresh.keys.data(), fresh.size(), slots));
  if (!arena_.Extend(static_cast<int64_t>(slots))) {
    return {StatusKind::kNoMemory,
            "no memory for " + std::to_string(slots) + " rows of " +
                std::to_string(options_.row_bytes) + " bytes"};
  }
  return {};
}

// Finds the slots of a batch, new ones for new rows. May throw std::bad_alloc;
// nothing but the room has changed then, nor after an error.
Status HostTier::FindOrAdd(const Key* keys, int64_t n, NewRows* fresh,
                           uint64_t* slots) {
  crew_->ForRanges(n, kGrain, [&](int64_t begin, int64_t end) {
    index_.Find(keys + begin, end - begin, slots + begin);
  });
  for (int64_t i = 0; i < n; ++i) {
    if (slots[i] != kNoLocation) continue;
    fresh->keys.push_back(keys[i]);
    fresh->positions.push_back(i);
  }
  if (fresh->size() == 0) return {};
  fresh->slots.resize(fresh->keys.size());
  fresh->replaced.resize(fresh->keys.size());
  ONEEMB_RETURN_IF_ERROR(Reserve(*fresh));
  for (size_t i = 0; i < fresh->slots.size(); ++i) {
    fresh->slots[i] = TakeSlot();
    slots[fresh->positions[i]] = fresh->slots[i];
  }
  index_.Put(fresh->keys.data(), fresh->slots.data(), fresh->size(),
             fresh->replaced.data());
  return {};
}

// Row i to slots[i]. A slot that occurs twice has both its rows copied by one
// thread, in order.
void HostTier::CopyRows(const std::vector<uint64_t>& slots, const char* rows) {
  constexpr uint64_t kTogether = 64;  // neighbours, which may share a line
  const auto n = static_cast<int64_t>(slots.size());
  const int64_t width = options_.row_bytes;
  const int64_t shares = crew_->NumPieces(n, kGrain);
  crew_->Run(shares, [&](int64_t share) {
    uint64_t mine[kBlock];
    for (int64_t begin = 0; begin < n; begin += kBlock) {
      const int64_t count = std::min(kBlock, n - begin);
      for (int64_t i = 0; i < count; ++i) {
        const uint64_t slot = slots[static_cast<size_t>(begin + i)];
        const uint64_t owner = slot / kTogether % static_cast<uint64_t>(shares);
        mine[i] = owner == static_cast<uint64_t>(share) ? slot : kNoLocation;
      }
      ForEachRow(arena_, mine, count, [&](int64_t i, char* row) {
        memcpy(row, rows + (begin + i) * width, static_cast<size_t>(width));
      });
    }
  });
}

Status HostTier::Put(const Key* keys, const char* rows, int64_t n) {
  NewRows fresh;
  std::vector<uint64_t> slots;
  try {
    slots.resize(static_cast<size_t>(n));
    ONEEMB_RETURN_IF_ERROR(FindOrAdd(keys, n, &fresh, slots.data()));
  } catch (const std::bad_alloc&) {
    return {StatusKind::kNoMemory,
            "no memory to put " + std::to_string(n) + " rows"};
  }
  CopyRows(slots, rows);
  for (const uint64_t slot : fresh.replaced) {
    if (slot != kNoLocation) FreeSlot(slot);
  }
  return {};
}

void HostTier::Erase(const Key* keys, int64_t n, uint8_t* erased) {
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t count = std::min(kBlock, n - begin);
    uint64_t slots[kBlock];
    index_.Erase(keys + begin, count, slots);
    for (int64_t i = 0; i < count; ++i) {
      erased[begin + i] = slots[i] == kNoLocation ? 0 : 1;
      if (slots[i] != kNoLocation) FreeSlot(slots[i]);
    }
  }
}

int64_t HostTier::Scan(uint64_t* cursor, int64_t most, Key* keys,
                       char* rows) const {
  const int64_t width = options_.row_bytes;
  int64_t total = 0;
  while (total < most) {
    uint64_t slots[kBlock];
    const int64_t count = index_.Scan(cursor, std::min(kBlock, most - total),
                                      keys + total, slots);
    if (count == 0) break;
    ForEachRow(arena_, slots, count, [&](int64_t i, const char* row) {
      memcpy(rows + (total + i) * width, row, static_cast<size_t>(width));
    });
    total += count;
  }
  return total;
}

void HostTier::Clear() {
  index_.Clear();
  arena_.Clear();
  slots_ = 0;
  num_free_ = 0;
}

int64_t HostTier::bytes() const {
  return index_.bytes() + arena_.BytesFor(static_cast<int64_t>(slots_));
}

}  // namespace oneemb
