// Looks up many keys at once: while one id waits for its bucket, the ids before
// it wait for their rows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "core/bucket.h"
#include "core/ids.h"
#include "cpu/parallel.h"

namespace oneemb {

constexpr int kCacheLine = 64;
// A row of at most so much is narrow.
constexpr int64_t kNarrowBytes = int64_t{2} * kCacheLine;

// Into the second-level cache: what is on its way to the first one takes one of
// the few lines that it waits for at once, and rows of several lines would wait
// for those. Inlined by force: g++ takes a function that only prefetches for
// one without effect, and drops calls of it.
[[gnu::always_inline]] inline void PrefetchRead(const void* address) {
  constexpr int kSecondLevel = 2;
  __builtin_prefetch(address, 0, kSecondLevel);
}

[[gnu::always_inline]] inline void PrefetchWrite(const void* address) {
  __builtin_prefetch(address, 1, 3);
}

[[gnu::always_inline]] inline void PrefetchLines(const void* address,
                                                 int64_t bytes) {
  const char* const p = static_cast<const char*>(address);
  for (int64_t b = 0; b < bytes; b += kCacheLine) PrefetchRead(p + b);
}

[[gnu::always_inline]] inline void PrefetchLinesToWrite(const void* address,
                                                        int64_t bytes) {
  const char* const p = static_cast<const char*>(address);
  for (int64_t b = 0; b < bytes; b += kCacheLine) PrefetchWrite(p + b);
}

// What a search of one bucket may say besides a slot or kSlotMissing: the key
// may have gone past it.
constexpr int32_t kSlotUnknown = -4;

// The slot of `key` by what `bucket` has. Without a branch where the processor
// can: which keys are in their home buckets is as good as random.
inline int32_t LookInto(const Bucket& bucket, Key key, uint8_t tag) {
  const int32_t otherwise = bucket.overflow == 0 ? kSlotMissing : kSlotUnknown;
#if defined(__AVX2__)
  (void)tag;  // comparing four whole ids takes no longer than their tags
  const __m256i same_ids = _mm256_cmpeq_epi64(
      _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bucket.ids)),
      _mm256_set1_epi64x(static_cast<int64_t>(key.id)));
  const __m128i same_tables = _mm_cmpeq_epi16(
      _mm_loadl_epi64(reinterpret_cast<const __m128i*>(bucket.tables)),
      _mm_set1_epi16(static_cast<int16_t>(key.table)));
  int32_t tags = 0;
  std::memcpy(&tags, bucket.tags, sizeof(tags));
  // An empty entry has id 0 and tag 0.
  const __m128i empty =
      _mm_cmpeq_epi8(_mm_cvtsi32_si128(tags), _mm_setzero_si128());
  const __m256i same = _mm256_andnot_si256(
      _mm256_cvtepi8_epi64(empty),
      _mm256_and_si256(same_ids, _mm256_cvtepi16_epi64(same_tables)));
  const auto matches =
      static_cast<uint32_t>(_mm256_movemask_pd(_mm256_castsi256_pd(same)));
  constexpr uint32_t kLastEntry = 1U << (kBucketEntries - 1);
  const int32_t slot = bucket.slots[LowestBit(matches | kLastEntry)];
  return matches != 0 ? slot : otherwise;
#else
  const int entry = FindEntry(bucket, key, tag);
  return entry >= 0 ? bucket.slots[entry] : otherwise;
#endif
}

// One id whose search has ended.
struct ProbeItem {
  int64_t position;
  uint64_t id;
  int32_t table;
  int32_t slot;
};

// Ids that go through the pipeline together: few enough for the processor's
// miss buffers, many enough for a trip to memory while one block goes a step.
// Aligned, arrays first: vectors that are stored across two lines take a search
// up to a fifth longer, by where on the stack a block happens to lie.
struct alignas(kCacheLine) ProbeBlock {
  static constexpr int64_t kSize = 32;

  uint64_t ids[kSize];
  const Bucket* buckets[kSize];  // where the search begins, or goes on
  int32_t tables[kSize];
  int32_t slots[kSize];
  uint8_t tags[kSize];
  uint8_t unknown[kSize];  // which of them are not in their home buckets
  int64_t begin;           // position of the first
  int64_t size;
  int64_t num_unknown;
};

// The stages of the pipeline. Each waits for one cache miss of the one before.
class ProbeStages {
 public:
  ProbeStages(const IndexView& index, const KeyRules& rules, const IdsView& ids,
              int64_t begin)
      : index_(index), rules_(rules), cursor_(ids, begin) {}

  // Reads the next ids and asks for their home buckets.
  void Start(int64_t begin, int64_t size, ProbeBlock* block) {
    block->begin = begin;
    block->size = size;
    cursor_.Take(size, block->ids, block->tables);
    for (int64_t k = 0; k < size; ++k) {
      const Key key = rules_.MakeKey(block->ids[k], block->tables[k]);
      const uint64_t hash = HashKey(key);
      block->tags[k] = HashTag(hash);
      block->buckets[k] = index_.buckets + HomeBucket(hash, index_.num_buckets);
      PrefetchRead(block->buckets[k]);
    }
    for (int64_t k = 0; k < size; ++k) {
      block->slots[k] = rules_.Reject(block->ids[k], block->tables[k]);
    }
  }

  // Looks into the home buckets, where most keys are; asks for the next ones
  // where the search goes on.
  void LookHome(ProbeBlock* block) const {
    int64_t num_unknown = 0;
    for (int64_t k = 0; k < block->size; ++k) {
      const int32_t rejected = block->slots[k];
      const int32_t found = Look(*block, k);
      const int32_t slot = rejected < 0 ? rejected : found;
      block->slots[k] = slot;
      block->unknown[num_unknown] = static_cast<uint8_t>(k);
      num_unknown += slot == kSlotUnknown ? 1 : 0;
    }
    block->num_unknown = num_unknown;
    for (int64_t u = 0; u < num_unknown; ++u) {
      const Bucket*& bucket = block->buckets[block->unknown[u]];
      bucket = After(bucket);
      const Bucket* next = bucket;
      for (int i = 0; i < kStride; ++i, next = After(next)) PrefetchRead(next);
    }
  }

  // Ends the searches that went on, most of them with the next few buckets.
  void LookOn(ProbeBlock* block) const {
    int64_t num_unknown = 0;
    for (int64_t u = 0; u < block->num_unknown; ++u) {
      const uint8_t k = block->unknown[u];
      const int32_t slot = LookStride(block, k);
      block->slots[k] = slot;
      block->unknown[num_unknown] = k;
      num_unknown += slot == kSlotUnknown ? 1 : 0;
    }
    for (int64_t u = 0; u < num_unknown; ++u) {
      LookFurther(block, block->unknown[u]);
    }
  }

 private:
  // Buckets that are looked into together. In an index as full as a table makes
  // it, two thirds, a tenth of the keys are not at home, and nearly all of
  // those are in the next three.
  static constexpr int kStride = 3;

  int32_t Look(const ProbeBlock& block, int64_t k) const {
    return LookInto(*block.buckets[k],
                    rules_.MakeKey(block.ids[k], block.tables[k]),
                    block.tags[k]);
  }

  // Looks into the next buckets without a branch between them: how far a key
  // had to go is as good as random. A slot is above kSlotMissing, and that
  // above kSlotUnknown; behind a bucket that nobody passed there is no such
  // key.
  int32_t LookStride(ProbeBlock* block, int64_t k) const {
    const Bucket*& bucket = block->buckets[k];
    int32_t slot = kSlotUnknown;
    for (int i = 0; i < kStride; ++i, bucket = After(bucket)) {
      slot = std::max(slot, Look(*block, k));
    }
    return slot;
  }

  // Goes on until the whole index has been looked through.
  void LookFurther(ProbeBlock* block, int64_t k) const {
    int32_t slot = kSlotUnknown;
    for (int64_t looked = 1 + kStride;
         slot == kSlotUnknown && looked < index_.num_buckets;
         looked += kStride) {
      slot = LookStride(block, k);
    }
    block->slots[k] = slot == kSlotUnknown ? kSlotMissing : slot;
  }

  const Bucket* After(const Bucket* bucket) const {
    ++bucket;
    return bucket == index_.buckets + index_.num_buckets ? index_.buckets
                                                         : bucket;
  }

  // Copies: the compiler would read a reference again after every store.
  const IndexView index_;
  const KeyRules rules_;
  IdCursor cursor_;
};

// Finds the slots of ids[range] and hands them on one by one, in order:
// `ahead(slot)` as soon as the slot is known (to prefetch a row), and
// `emit(item)` a block later. Both by value: what they hold stays in registers.
template <class Ahead, class Emit>
void Probe(const IndexView& index, const KeyRules& rules, const IdsView& ids,
           Range range, Ahead ahead, Emit emit) {
  constexpr int64_t kSize = ProbeBlock::kSize;
  constexpr uint64_t kRing = 4;
  ProbeBlock ring[kRing];
  const auto in_ring = [&](int64_t b) {
    return &ring[static_cast<uint64_t>(b) % kRing];
  };
  ProbeStages stages(index, rules, ids, range.begin);
  const int64_t blocks = (range.end - range.begin + kSize - 1) / kSize;
  const auto in_flight = [&](int64_t b) { return b >= 0 && b < blocks; };
  for (int64_t b = 0; b < blocks + 3; ++b) {
    if (in_flight(b)) {
      const int64_t begin = range.begin + b * kSize;
      stages.Start(begin, std::min(kSize, range.end - begin), in_ring(b));
    }
    if (in_flight(b - 1)) stages.LookHome(in_ring(b - 1));
    if (in_flight(b - 2)) {
      ProbeBlock* const block = in_ring(b - 2);
      stages.LookOn(block);
      for (int64_t k = 0; k < block->size; ++k) ahead(block->slots[k]);
    }
    if (!in_flight(b - 3)) continue;
    const ProbeBlock& done = *in_ring(b - 3);
    for (int64_t k = 0; k < done.size; ++k) {
      emit(ProbeItem{done.begin + k, done.ids[k], done.tables[k],
                     done.slots[k]});
    }
  }
}

// Writes the slots of ids[range] to slots[range].
inline void ProbeSlots(const IndexView& index, const KeyRules& rules,
                       const IdsView& ids, Range range, int32_t* slots) {
  const auto nothing = [](int32_t) {};
  const auto emit = [slots](const ProbeItem& item) {
    slots[item.position] = item.slot;
  };
  Probe(index, rules, ids, range, nothing, emit);
}

}  // namespace oneemb
