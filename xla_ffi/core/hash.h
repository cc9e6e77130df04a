// XXH64 of one 64-bit word: the only hash of the project.
//
// Seed 1 decides the shard that owns an id (OneFlow's rule), other seeds the
// place in an index. Specification: xxHash fast digest algorithm, "XXH64".
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace oneemb {

constexpr uint64_t kShardSeed = 1;
// An index mixes the table in: the seed of table t is kIndexSeed + t.
constexpr uint64_t kIndexSeed = 0x10000;

namespace hash_internal {
constexpr uint64_t kPrime1 = 0x9E3779B185EBCA87ULL;
constexpr uint64_t kPrime2 = 0xC2B2AE3D27D4EB4FULL;
constexpr uint64_t kPrime3 = 0x165667B19E3779F9ULL;
constexpr uint64_t kPrime4 = 0x85EBCA77C2B2AE63ULL;
constexpr uint64_t kPrime5 = 0x27D4EB2F165667C5ULL;

ONEEMB_HD uint64_t RotateLeft(uint64_t x, int bits) {
  return (x << bits) | (x >> (64 - bits));
}
}  // namespace hash_internal

ONEEMB_HD uint64_t Xxh64(uint64_t word, uint64_t seed) {
  using namespace hash_internal;  // NOLINT(google-build-using-namespace)
  uint64_t h = seed + kPrime5 + 8;
  h ^= RotateLeft(word * kPrime2, 31) * kPrime1;
  h = RotateLeft(h, 27) * kPrime1 + kPrime4;
  h ^= h >> 33;
  h *= kPrime2;
  h ^= h >> 29;
  h *= kPrime3;
  h ^= h >> 32;
  return h;
}

}  // namespace oneemb
