// Tells ids apart from others that the same process has seen in their place.
#pragma once

#include <cstdint>

#include "core/hash.h"
#include "core/ids.h"
#include "cpu/parallel.h"

namespace oneemb {

// Ids that have a digest together: a block.
constexpr int64_t kDigestIds = 256;

inline int64_t NumDigests(int64_t ids) {
  return (ids + kDigestIds - 1) / kDigestIds;
}

// Two sums by keys that the process has drawn at random. Whatever two blocks
// of as many ids are, unless they are the same, either sum is the same with a
// probability of 2^-32 at most, and both with 2^-64 (NH of UMAC, RFC 4418,
// section 5.2).
struct IdsDigest {
  uint64_t sums[2];
};
inline bool operator==(const IdsDigest& a, const IdsDigest& b) {
  return a.sums[0] == b.sums[0] && a.sums[1] == b.sums[1];
}

// The keys of a sum: one for each word that a block may have.
const uint32_t* DigestKeys(int sum);

// Of ids[range], which is in one block.
IdsDigest DigestIds(const IdsView& ids, Range range);

// What a block adds to the digest of its batch, which is a sum, in any order.
// Blocks of a batch have different numbers.
inline uint64_t DigestTerm(const IdsDigest& block, int64_t number) {
  const uint64_t second = Xxh64(block.sums[1], static_cast<uint64_t>(number));
  return Xxh64(block.sums[0], second);
}

// What ids[range], which begins with a block, adds to it. Writes the digests of
// its blocks to where they are in `digests`, unless that is null.
uint64_t DigestBlocks(const IdsView& ids, Range range, IdsDigest* digests);

// The rest of the sum: of the tables, and of the shape of it all.
uint64_t DigestTables(const IdsView& ids);

// The digest of a batch.
uint64_t DigestBatch(const IdsView& ids);

}  // namespace oneemb
