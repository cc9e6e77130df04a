// The way back from a hash to the id: for a given seed, XXH64 of one 64-bit
// word is one to one. So an index that keeps the hash keeps the id.
#pragma once

#include <cstdint>

#include "core/hash.h"

namespace oneemb {

namespace hash_inverse_internal {
// The x with x * odd == 1, modulo 2^64: each step doubles the right bits.
constexpr uint64_t Inverse(uint64_t odd) {
  uint64_t x = odd;  // three bits are right
  for (int bits = 3; bits < 64; bits *= 2) x *= 2 - odd * x;
  return x;
}
constexpr uint64_t kInverse1 = Inverse(hash_internal::kPrime1);
constexpr uint64_t kInverse2 = Inverse(hash_internal::kPrime2);
constexpr uint64_t kInverse3 = Inverse(hash_internal::kPrime3);
static_assert(kInverse1 * hash_internal::kPrime1 == 1, "an inverse");
static_assert(kInverse2 * hash_internal::kPrime2 == 1, "an inverse");
static_assert(kInverse3 * hash_internal::kPrime3 == 1, "an inverse");
}  // namespace hash_inverse_internal

// The word with Xxh64(word, seed) == hash: its steps, undone from the last.
inline uint64_t Xxh64Inverse(uint64_t hash, uint64_t seed) {
  using namespace hash_internal;  // NOLINT(google-build-using-namespace)
  using namespace hash_inverse_internal;  // NOLINT(google-build-using-namespace)
  uint64_t h = hash;
  h ^= h >> 32;
  h *= kInverse3;
  h ^= (h >> 29) ^ (h >> 58);
  h *= kInverse2;
  h ^= h >> 33;
  h = RotateLeft((h - kPrime4) * kInverse1, 64 - 27);
  h ^= seed + kPrime5 + 8;
  return RotateLeft(h * kInverse1, 64 - 31) * kInverse2;
}

}  // namespace oneemb
