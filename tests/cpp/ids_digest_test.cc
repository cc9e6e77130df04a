// Digests are the sums of products that they are said to be, and differ where
// ids do.
#include "cpu/ids_digest.h"

#include <algorithm>
#include <random>
#include <set>
#include <vector>

#include "check.h"

namespace oneemb {
namespace {

std::vector<uint32_t> DrawWords(size_t count, std::mt19937_64* random) {
  std::vector<uint32_t> words(count);
  for (uint32_t& word : words) word = static_cast<uint32_t>((*random)());
  return words;
}

constexpr int32_t kTable = 0;

IdsView View(const std::vector<uint32_t>& words, int words_per_id) {
  const auto size = static_cast<int64_t>(words.size()) / words_per_id;
  return {words.data(), words_per_id, size, size, &kTable, 1};
}

IdsDigest DigestAll(const std::vector<uint32_t>& words, int words_per_id) {
  const IdsView view = View(words, words_per_id);
  return DigestIds(view, {0, view.size});
}

// By the definition, one pair after another.
uint64_t SumOf(std::vector<uint32_t> words, int sum) {
  if (words.size() % 2 != 0) words.push_back(0);
  const uint32_t* const keys = DigestKeys(sum);
  uint64_t total = 0;
  for (size_t i = 0; i < words.size(); i += 2) {
    const uint64_t a = (uint64_t{words[i]} + keys[i]) % (uint64_t{1} << 32);
    const uint64_t b =
        (uint64_t{words[i + 1]} + keys[i + 1]) % (uint64_t{1} << 32);
    total += a * b;
  }
  return total;
}

TEST(ADigestIsWhatTheDefinitionSays) {
  std::mt19937_64 random(1);
  for (const int words_per_id : {1, 2}) {
    for (int64_t size = 0; size <= kDigestIds; ++size) {
      const std::vector<uint32_t> words =
          DrawWords(static_cast<size_t>(size * words_per_id), &random);
      const IdsDigest digest = DigestAll(words, words_per_id);
      for (int sum = 0; sum < 2; ++sum) {
        CHECK_EQ(digest.sums[sum], SumOf(words, sum));
      }
    }
  }
}

TEST(TheKeysAreDrawn) {
  std::set<uint32_t> keys;
  for (int sum = 0; sum < 2; ++sum) {
    const uint32_t* const first = DigestKeys(sum);
    keys.insert(first, first + 2 * kDigestIds);
  }
  // Of 1,024 draws two are equal in one process of ten thousand.
  CHECK(keys.size() >= 4 * kDigestIds - 2);
}

TEST(IdsThatDifferOrChangePlacesHaveOtherDigests) {
  std::mt19937_64 random(2);
  for (const int words_per_id : {1, 2}) {
    const std::vector<uint32_t> words =
        DrawWords(100 * static_cast<size_t>(words_per_id), &random);
    const IdsDigest digest = DigestAll(words, words_per_id);
    for (size_t i = 0; i < words.size(); ++i) {
      std::vector<uint32_t> other = words;
      other[i] ^= uint32_t{1} << (random() % 32);
      CHECK(!(DigestAll(other, words_per_id) == digest));
      other = words;
      std::swap(other[i], other[random() % (i + 1)]);
      CHECK(other == words || !(DigestAll(other, words_per_id) == digest));
    }
  }
}

TEST(TheDigestOfABatchKnowsBlocksTablesAndSize) {
  std::mt19937_64 random(3);
  std::vector<uint32_t> words =
      DrawWords(static_cast<size_t>(6 * kDigestIds + 10), &random);
  std::set<uint64_t> digests{DigestBatch(View(words, 2))};
  // Two blocks change places.
  std::swap_ranges(words.begin(), words.begin() + 2 * kDigestIds,
                   words.begin() + 2 * kDigestIds);
  const IdsView view = View(words, 2);
  digests.insert(DigestBatch(view));
  digests.insert(DigestBatch(View(words, 1)));
  IdsView fewer = view;
  fewer.batch_size = --fewer.size;
  digests.insert(DigestBatch(fewer));
  const int32_t other = 1;
  IdsView elsewhere = view;
  elsewhere.table_ids = &other;
  digests.insert(DigestBatch(elsewhere));
  // A list of tables that is longer by a zero.
  const int32_t longer[] = {1, 0};
  elsewhere.table_ids = longer;
  elsewhere.table_period = 2;
  digests.insert(DigestBatch(elsewhere));
  // The same list, of two microbatches.
  elsewhere.batch_size /= 2;
  elsewhere.table_period = 1;
  digests.insert(DigestBatch(elsewhere));
  CHECK_EQ(digests.size(), 7U);

  uint64_t sum = DigestTables(view);
  for (int64_t i = 0; i < NumDigests(view.size); ++i) {
    const int64_t begin = i * kDigestIds;
    const Range block{begin, std::min(begin + kDigestIds, view.size)};
    sum += DigestTerm(DigestIds(view, block), i);
  }
  CHECK_EQ(sum, DigestBatch(view));
}

}  // namespace
}  // namespace oneemb
