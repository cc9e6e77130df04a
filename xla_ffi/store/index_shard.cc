#include "store/index_shard.h"

#include <algorithm>

namespace oneemb {
namespace {

constexpr int kTableBits = 16;
constexpr int kTagHighBits = 16;
constexpr int kLowBits = 64;
// What an entry has for tag and location; the tag has one bit more than the
// quotient.
constexpr int kEntryBits = kLowBits + kTagHighBits;
static_assert(kTagHighBits + kTableBits == 32, "they fill the high word");

constexpr uint32_t kMostAway = (uint32_t{1} << 29) - 1;

// Buckets looked at in search of a place: at 94 % full, six are enough on
// average, and in 10^8 insertions not one needed 100.
constexpr int kMostNodes = 256;

// Copying looks this far ahead.
constexpr int kCopyBlock = 32;

int FloorLog2(uint64_t x) { return 63 - __builtin_clzll(x); }

int LocationBits(int rest_bits, uint64_t buckets) {
  return kEntryBits - 1 - rest_bits + FloorLog2(buckets);
}

// Keys whose other bucket is used count there until they come home; the count
// stays at its top once it got there.
void AddAway(IndexBucket* home, bool more) {
  if (home->away == kMostAway) return;
  home->away = (more ? home->away + 1 : home->away - 1) & kMostAway;
}

}  // namespace

// A bucket on the way to one with room: entry `entry` of the parent's bucket
// could move here.
struct IndexShard::Node {
  uint64_t bucket;
  int parent;
  int entry;
};

int64_t IndexShard::BucketsFor(int64_t keys, int location_bits, int rest_bits) {
  int64_t buckets =
      std::max<int64_t>(2, keys * 100 / (int64_t{94} * kIndexEntries));
  while (MostKeys(buckets) < keys) ++buckets;
  const int log2 = location_bits - (kEntryBits - 1 - rest_bits);
  return log2 <= 0 ? buckets : std::max(buckets, int64_t{1} << log2);
}

void IndexShard::SetShape(uint64_t buckets) {
  num_buckets_ = buckets;
  reciprocal_ = ~uint64_t{0} / buckets;
  // 2^64 - 1 and 2^64 have the same quotient unless the divisor is a power
  // of two.
  if ((buckets & (buckets - 1)) == 0) ++reciprocal_;
  location_bits_ = LocationBits(rest_bits_, buckets);
}

IndexShard::Position IndexShard::Locate(ShardKey key) const {
  if (num_buckets_ == 0) return {0, -1};
  const Address home = Home(key.rest);
  const IndexBucket& bucket = buckets()[home.bucket];
  const int entry = Match(bucket, home.quotient * 2, key.table);
  if (entry >= 0 || bucket.away == 0) return {home.bucket, entry};
  const uint64_t other =
      Behind(home.bucket, Distance(home.quotient, key.table));
  return {other, Match(buckets()[other], home.quotient * 2 + 1, key.table)};
}

Place IndexShard::Find(ShardKey key) const {
  const Position at = Locate(key);
  if (at.entry < 0) return {};
  return {&buckets()[at.bucket].low[at.entry], LocationMask()};
}

uint64_t IndexShard::TagOf(const IndexBucket& bucket, int entry) const {
  const uint64_t high = bucket.high[entry] & ((1U << kTagHighBits) - 1);
  return (high << (kLowBits - location_bits_)) |
         (bucket.low[entry] >> location_bits_);
}

// The bucket that an entry may move to.
uint64_t IndexShard::OtherBucket(uint64_t bucket, int entry) const {
  const IndexBucket& b = buckets()[bucket];
  const uint64_t tag = TagOf(b, entry);
  const uint64_t distance =
      Distance(tag / 2, static_cast<uint16_t>(b.high[entry] >> kTagHighBits));
  return tag % 2 == 0 ? Behind(bucket, distance) : Before(bucket, distance);
}

void IndexShard::Write(IndexBucket* bucket, int entry, uint64_t tag,
                       uint16_t table, uint64_t location) const {
  bucket->low[entry] = (tag << location_bits_) | (location & LocationMask());
  bucket->high[entry] = HighWord(tag, table);
}

bool IndexShard::Append(uint64_t bucket, uint64_t tag, uint16_t table,
                        uint64_t location) {
  IndexBucket* const b = &buckets()[bucket];
  if (b->used == kIndexEntries) return false;
  Write(b, b->used, tag, table, location);
  b->used = (b->used + 1U) & 7U;
  return true;
}

bool IndexShard::Insert(ShardKey key, uint64_t location) {
  if (num_buckets_ == 0) return false;
  const Address home = Home(key.rest);
  const uint64_t tag = home.quotient * 2;
  if (!Append(home.bucket, tag, key.table, location)) {
    const uint64_t other =
        Behind(home.bucket, Distance(home.quotient, key.table));
    bool away = Append(other, tag + 1, key.table, location);
    if (!away) {
      const Position at = MakeRoom(home.bucket, other);
      if (at.entry < 0) return false;
      away = at.bucket == other;
      Write(&buckets()[at.bucket], at.entry, tag + (away ? 1 : 0), key.table,
            location);
    }
    if (away) AddAway(&buckets()[home.bucket], true);
  }
  ++size_;
  return true;
}

// Copies an entry over another one's place, in its other bucket.
void IndexShard::MoveEntry(uint64_t from, int entry, uint64_t to,
                           int to_entry) {
  IndexBucket* const source = &buckets()[from];
  IndexBucket* const target = &buckets()[to];
  const bool leaves_home = TagOf(*source, entry) % 2 == 0;
  target->low[to_entry] = source->low[entry] ^ (uint64_t{1} << location_bits_);
  target->high[to_entry] = source->high[entry];
  AddAway(leaves_home ? source : target, leaves_home);
}

// Moves entry `entry` of the last node's bucket to `to`, which has room, and
// then, bucket by bucket, each one on the way into the place left by the one
// before. Returns the place that is free in the end.
IndexShard::Position IndexShard::MoveAlong(const Node* nodes, int last,
                                           int entry, uint64_t to) {
  IndexBucket* const end = &buckets()[to];
  Position free = {to, static_cast<int>(end->used)};
  end->used = (end->used + 1U) & 7U;
  for (int n = last; n >= 0; n = nodes[n].parent) {
    MoveEntry(nodes[n].bucket, entry, free.bucket, free.entry);
    free = {nodes[n].bucket, entry};
    entry = nodes[n].entry;
  }
  return free;
}

// Frees an entry of `home` or of `other`, both full, by moving entries to their
// other buckets: breadth first to the nearest bucket with room, no bucket
// twice. Nothing has changed when there is none within bounds.
IndexShard::Position IndexShard::MakeRoom(uint64_t home, uint64_t other) {
  Node nodes[kMostNodes];
  nodes[0] = {home, -1, -1};
  nodes[1] = {other, -1, -1};
  int num_nodes = 2;
  for (int n = 0; n < num_nodes; ++n) {
    uint64_t targets[kIndexEntries];
    for (int e = 0; e < kIndexEntries; ++e) {
      targets[e] = OtherBucket(nodes[n].bucket, e);
      __builtin_prefetch(&buckets()[targets[e]]);
    }
    for (int e = 0; e < kIndexEntries; ++e) {
      const uint64_t to = targets[e];
      if (buckets()[to].used < kIndexEntries) {
        return MoveAlong(nodes, n, e, to);
      }
      const auto is_it = [to](const Node& node) { return node.bucket == to; };
      if (num_nodes < kMostNodes &&
          std::none_of(nodes, nodes + num_nodes, is_it)) {
        nodes[num_nodes++] = {to, n, e};
      }
    }
  }
  return {0, -1};
}

bool IndexShard::Erase(ShardKey key, uint64_t* location) {
  const Position at = Locate(key);
  if (at.entry < 0) return false;
  IndexBucket* const bucket = &buckets()[at.bucket];
  *location = bucket->low[at.entry] & LocationMask();
  if (TagOf(*bucket, at.entry) % 2 == 1) {
    AddAway(&buckets()[Home(key.rest).bucket], false);
  }
  const int last = static_cast<int>(bucket->used) - 1;
  bucket->low[at.entry] = bucket->low[last];
  bucket->high[at.entry] = bucket->high[last];
  bucket->used = static_cast<uint32_t>(last) & 7U;
  --size_;
  return true;
}

int IndexShard::BucketEntries(int64_t bucket, ShardEntry* entries) const {
  const auto number = static_cast<uint64_t>(bucket);
  const IndexBucket& b = buckets()[number];
  for (int e = 0; e < static_cast<int>(b.used); ++e) {
    const uint64_t tag = TagOf(b, e);
    const auto table = static_cast<uint16_t>(b.high[e] >> kTagHighBits);
    const uint64_t home =
        tag % 2 == 0 ? number : Before(number, Distance(tag / 2, table));
    entries[e] = {{tag / 2 * num_buckets_ + home, table},
                  b.low[e] & LocationMask()};
  }
  return static_cast<int>(b.used);
}

void IndexShard::EraseAll() {
  std::fill(buckets(), buckets() + num_buckets_, IndexBucket{});
  size_ = 0;
}

int IndexShard::BucketPlaces(int64_t bucket, Place* places) const {
  IndexBucket& b = buckets()[bucket];
  for (int e = 0; e < static_cast<int>(b.used); ++e) {
    places[e] = Place(&b.low[e], LocationMask());
  }
  return static_cast<int>(b.used);
}

bool IndexShard::CopyTo(PageSource* source, int64_t buckets, IndexShard* fresh,
                        std::vector<ShardEntry>* left_over) const {
  *fresh = IndexShard(rest_bits_);
  fresh->pages_ =
      Pages::Map(source, buckets * static_cast<int64_t>(sizeof(IndexBucket)));
  if (fresh->pages_.data() == nullptr) return false;
  fresh->SetShape(static_cast<uint64_t>(buckets));
  ShardEntry block[kCopyBlock + kIndexEntries];
  int64_t bucket = 0;
  while (bucket < num_buckets()) {
    int count = 0;
    for (; count < kCopyBlock && bucket < num_buckets(); ++bucket) {
      count += BucketEntries(bucket, block + count);
    }
    for (int i = 0; i < count; ++i) (void)fresh->Begin(block[i].key);
    for (int i = 0; i < count; ++i) {
      if (!fresh->Insert(block[i].key, block[i].location)) {
        left_over->push_back(block[i]);
      }
    }
  }
  return true;
}

}  // namespace oneemb
