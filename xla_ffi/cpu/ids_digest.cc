#include "cpu/ids_digest.h"

#include <algorithm>
#include <array>
#include <random>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace oneemb {
namespace {

constexpr int64_t kMostWords = 2 * kDigestIds;

struct alignas(64) Keys {
  std::array<uint32_t, kMostWords> of_sum[2];

  Keys() {
    std::random_device device;
    for (auto& keys : of_sum) {
      for (uint32_t& key : keys) key = device();
    }
  }

  static const Keys& Get() {
    static const Keys keys;
    return keys;
  }
};

// Adds the products of pairs of words.
void AddPairs(const uint32_t* words, int64_t pairs, int64_t first_key,
              const Keys& keys, uint64_t* sums) {
  for (int64_t i = 0; i < 2 * pairs; i += 2) {
    for (int s = 0; s < 2; ++s) {
      const uint32_t* const key = keys.of_sum[s].data() + first_key + i;
      const uint32_t a = words[i] + key[0];
      const uint32_t b = words[i + 1] + key[1];
      sums[s] += uint64_t{a} * b;
    }
  }
}

// The same, of whole vectors. The compiler would take four times as long: it
// sorts the words into first and second ones.
#if defined(__AVX2__)
constexpr int64_t kVectorPairs = 4;

int64_t AddVectors(const uint32_t* words, int64_t pairs, const Keys& keys,
                   uint64_t* sums) {
  __m256i totals[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
  const int64_t whole = pairs / kVectorPairs * kVectorPairs;
  for (int64_t i = 0; i < 2 * whole; i += 2 * kVectorPairs) {
    const __m256i pair =
        _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words + i));
    for (int s = 0; s < 2; ++s) {
      const __m256i key = _mm256_load_si256(
          reinterpret_cast<const __m256i*>(keys.of_sum[s].data() + i));
      const __m256i a = _mm256_add_epi32(pair, key);
      const __m256i b = _mm256_srli_epi64(a, 32);
      totals[s] = _mm256_add_epi64(totals[s], _mm256_mul_epu32(a, b));
    }
  }
  for (int s = 0; s < 2; ++s) {
    alignas(32) uint64_t lanes[kVectorPairs];
    _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), totals[s]);
    for (const uint64_t lane : lanes) sums[s] += lane;
  }
  return whole;
}
#endif

}  // namespace

const uint32_t* DigestKeys(int sum) { return Keys::Get().of_sum[sum].data(); }

IdsDigest DigestIds(const IdsView& ids, Range range) {
  const Keys& keys = Keys::Get();
  const uint32_t* const words = ids.words + range.begin * ids.words_per_id;
  const int64_t count = (range.end - range.begin) * ids.words_per_id;
  IdsDigest digest{};
  int64_t done = 0;
#if defined(__AVX2__)
  done = AddVectors(words, count / 2, keys, digest.sums);
#endif
  AddPairs(words + 2 * done, count / 2 - done, 2 * done, keys, digest.sums);
  if (count % 2 != 0) {
    const uint32_t last[2] = {words[count - 1], 0};
    AddPairs(last, 1, count - 1, keys, digest.sums);
  }
  return digest;
}

uint64_t DigestBlocks(const IdsView& ids, Range range, IdsDigest* digests) {
  uint64_t sum = 0;
  for (int64_t i = range.begin; i < range.end; i += kDigestIds) {
    const int64_t number = i / kDigestIds;
    const IdsDigest block =
        DigestIds(ids, {i, std::min(i + kDigestIds, range.end)});
    if (digests != nullptr) digests[number] = block;
    sum += DigestTerm(block, number);
  }
  return sum;
}

uint64_t DigestTables(const IdsView& ids) {
  // As if they were ids, in places where no ids are.
  IdsView tables{};
  tables.words = reinterpret_cast<const uint32_t*>(ids.table_ids);
  tables.words_per_id = 1;
  tables.size = ids.num_table_ids();
  // Digests tell apart lists of one length, so the lengths are part of it.
  uint64_t sum = static_cast<uint64_t>(ids.words_per_id);
  for (const int64_t length : {ids.size, ids.batch_size, ids.table_period}) {
    sum = Xxh64(static_cast<uint64_t>(length), sum);
  }
  for (int64_t i = 0; i < tables.size; i += kDigestIds) {
    const Range block{i, std::min(i + kDigestIds, tables.size)};
    sum += DigestTerm(DigestIds(tables, block), -1 - i / kDigestIds);
  }
  return sum;
}

uint64_t DigestBatch(const IdsView& ids) {
  return DigestTables(ids) + DigestBlocks(ids, {0, ids.size}, nullptr);
}

}  // namespace oneemb
