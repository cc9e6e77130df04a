#include "store/s3_fifo.h"

#include <algorithm>
#include <cstring>

namespace oneemb {
namespace {

uint32_t Fingerprint(uint64_t hash) {
  const auto low = static_cast<uint32_t>(hash);
  return low == 0 ? 1 : low;  // 0: none
}

}  // namespace

int64_t S3Fifo::GhostLines(int64_t slots) {
  return (slots * 9 / 10 + kGhostWays - 1) / kGhostWays + 1;
}

int64_t S3Fifo::BytesFor(int64_t slots) {
  constexpr auto kGhostLineBytes =
      kGhostWays * static_cast<int64_t>(sizeof(uint32_t));
  return Pages::Rounded(slots * static_cast<int64_t>(sizeof(uint64_t))) +
         Pages::Rounded(slots * static_cast<int64_t>(sizeof(uint32_t))) +
         Pages::Rounded(slots * static_cast<int64_t>(sizeof(uint16_t))) +
         Pages::Rounded(GhostLines(slots) * kGhostLineBytes);
}

bool S3Fifo::Open(PageSource* pages, int64_t slots) {
  ghost_lines_ = GhostLines(slots);
  small_target_ = std::max<int64_t>(1, slots / 10);
  small_ = {};
  main_ = {};
  const auto map = [pages](int64_t items, size_t bytes) {
    return Pages::Map(pages, items * static_cast<int64_t>(bytes));
  };
  ids_ = map(slots, sizeof(uint64_t));
  links_ = map(slots, sizeof(uint32_t));
  tables_ = map(slots, sizeof(uint16_t));
  ghost_ = map(ghost_lines_ * kGhostWays, sizeof(uint32_t));
  return ids_.data() != nullptr && links_.data() != nullptr &&
         tables_.data() != nullptr && ghost_.data() != nullptr;
}

void S3Fifo::Clear() {
  memset(links_.data(), 0, static_cast<size_t>(links_.bytes()));
  memset(ghost_.data(), 0, static_cast<size_t>(ghost_.bytes()));
  small_ = {};
  main_ = {};
}

uint32_t* S3Fifo::GhostLine(uint64_t hash) const {
  const uint64_t line =
      ((hash >> 32) * static_cast<uint64_t>(ghost_lines_)) >> 32;
  return reinterpret_cast<uint32_t*>(ghost_.data()) + line * kGhostWays;
}

void S3Fifo::Remember(uint64_t hash) {
  uint32_t* const line = GhostLine(hash);
  memmove(line + 1, line, (kGhostWays - 1) * sizeof(uint32_t));
  line[0] = Fingerprint(hash);
}

// Whether a fingerprint is known; it is forgotten. Another key may have the
// same: then a row is taken for a popular one, which costs a little room.
bool S3Fifo::TakeFromGhost(uint64_t hash) {
  uint32_t* const line = GhostLine(hash);
  uint32_t* const end = line + kGhostWays;
  uint32_t* const found = std::find(line, end, Fingerprint(hash));
  if (found == end) return false;
  *found = 0;
  return true;
}

void S3Fifo::Push(uint32_t slot, Queue* queue) {
  if (queue->size == 0) {
    queue->first = slot;
  } else {
    uint32_t* const last = &links()[queue->last];
    *last = (*last & ~kNext) | slot;
  }
  queue->last = slot;
  links()[slot] = kQueued;
  ++queue->size;
}

void S3Fifo::Admit(uint32_t slot, Key key, uint64_t hash) {
  ids()[slot] = key.id;
  tables()[slot] = key.table;
  const bool known = TakeFromGhost(hash);
  if (queued(slot)) {
    links()[slot] &= ~kRemoved;
  } else if (known) {
    Push(slot, &main_);
  } else {
    Push(slot, &small_);
  }
}

bool S3Fifo::Pop(bool prefer_small, uint32_t* slot, bool* from_main) {
  while (small_.size + main_.size > 0) {
    const int64_t small_keeps = prefer_small ? 1 : small_target_;
    *from_main = main_.size > 0 && small_.size < small_keeps;
    Queue* const queue = *from_main ? &main_ : &small_;
    *slot = queue->first;
    const uint32_t link = links()[*slot];
    queue->first = link & kNext;
    --queue->size;
    links()[*slot] = 0;
    if ((link & kRemoved) == 0) return true;
  }
  return false;
}

void S3Fifo::Remove(uint32_t slot) {
  if (queued(slot)) links()[slot] |= kRemoved;
}

}  // namespace oneemb
