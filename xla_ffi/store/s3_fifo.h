// Which rows a cache gives up: S3-FIFO.
//
// A new row enters a small queue, a tenth of the cache. If nobody asked for it
// by the time it comes out, it leaves the cache, and only a fingerprint of its
// key is remembered; otherwise it goes on to the main queue, as does a row that
// returns while its fingerprint is known. A row that comes out of the main
// queue enters it again as often as it was asked for since, up to three times.
// Asking for a row moves nothing: it counts in two bits, which the cache keeps
// beside the row's number (host_cache.h).
//
// J. Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023.
#pragma once

#include <cstdint>

#include "store/key.h"
#include "store/pages.h"

namespace oneemb {

// The queues, the keys of the rows in them, and the fingerprints: 18 bytes a
// row. Not thread-safe.
class S3Fifo {
 public:
  static constexpr int64_t kMostSlots = (int64_t{1} << 29) - 1;

  // Memory for a cache of `slots` rows.
  static int64_t BytesFor(int64_t slots);
  // Empty, for slots 0 ... slots - 1. False when there is no memory.
  bool Open(PageSource* pages, int64_t slots);
  // Empties queues and memory.
  void Clear();

  // The key that a slot was admitted with last.
  Key key(uint32_t slot) const { return {ids()[slot], tables()[slot]}; }
  bool queued(uint32_t slot) const { return (links()[slot] & kQueued) != 0; }

  // A row enters. A slot that was removed where it stood in a queue takes that
  // place again.
  void Admit(uint32_t slot, Key key, uint64_t hash);
  // Takes the next row out of the queue whose turn it is, or out of the small
  // one if there is any and it is preferred. False when both are empty.
  bool Pop(bool prefer_small, uint32_t* slot, bool* from_main);
  // Puts a row that came out at the end of the main queue.
  void PushMain(uint32_t slot) { Push(slot, &main_); }
  // The row leaves, wherever it is.
  void Remove(uint32_t slot);
  // A row that leaves from the small queue is remembered for a while.
  void Remember(uint64_t hash);

  int64_t small_size() const { return small_.size; }
  int64_t main_size() const { return main_.size; }

 private:
  // A link is the next slot of the queue and two bits.
  static constexpr uint32_t kNext = (uint32_t{1} << 29) - 1;
  static constexpr uint32_t kRemoved = uint32_t{1} << 29;
  static constexpr uint32_t kQueued = uint32_t{1} << 31;
  // Fingerprints of one line; the oldest makes room for the newest.
  static constexpr int64_t kGhostWays = 16;

  struct Queue {
    uint32_t first = 0;
    uint32_t last = 0;
    int64_t size = 0;
  };

  static int64_t GhostLines(int64_t slots);
  uint64_t* ids() const { return reinterpret_cast<uint64_t*>(ids_.data()); }
  uint32_t* links() const { return reinterpret_cast<uint32_t*>(links_.data()); }
  uint16_t* tables() const {
    return reinterpret_cast<uint16_t*>(tables_.data());
  }
  uint32_t* GhostLine(uint64_t hash) const;
  bool TakeFromGhost(uint64_t hash);
  void Push(uint32_t slot, Queue* queue);

  Pages ids_;
  Pages links_;
  Pages tables_;
  Pages ghost_;
  int64_t ghost_lines_ = 0;
  int64_t small_target_ = 0;
  Queue small_;
  Queue main_;
};

}  // namespace oneemb
