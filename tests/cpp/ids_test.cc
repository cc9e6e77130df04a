// A cursor walks the ids as they are numbered.
#include "core/ids.h"

#include <algorithm>
#include <random>
#include <vector>

#include "check.h"

namespace oneemb {
namespace {

// A batch of microbatches, each with table ids of its own.
struct Batch {
  std::vector<uint32_t> words;
  std::vector<int32_t> table_ids;
  IdsView view;
};

Batch DrawBatch(int words_per_id, int64_t period, int64_t microbatches,
                std::mt19937_64* random) {
  const int64_t batch_size = period * static_cast<int64_t>(1 + (*random)() % 9);
  const int64_t size = batch_size * microbatches;
  Batch batch;
  batch.words.resize(static_cast<size_t>(size * words_per_id));
  for (uint32_t& word : batch.words) word = static_cast<uint32_t>((*random)());
  batch.table_ids.resize(static_cast<size_t>(period * microbatches));
  for (int32_t& table : batch.table_ids) {
    table = static_cast<int32_t>((*random)() % 7);
  }
  batch.view = {batch.words.data(), words_per_id,           size,
                batch_size,         batch.table_ids.data(), period};
  return batch;
}

// Walks from `begin` on by draws of random length.
void CheckTake(const IdsView& view, int64_t begin, std::mt19937_64* random) {
  IdCursor cursor(view, begin);
  std::vector<uint64_t> ids(16);
  std::vector<int32_t> tables(16);
  while (begin < view.size) {
    const int64_t count = std::min<int64_t>(
        static_cast<int64_t>((*random)() % 17), view.size - begin);
    cursor.Take(count, ids.data(), tables.data());
    for (int64_t k = 0; k < count; ++k) {
      CHECK_EQ(ids[static_cast<size_t>(k)], view.Id(begin + k));
      CHECK_EQ(tables[static_cast<size_t>(k)], view.Table(begin + k));
    }
    begin += count;
  }
  cursor.Take(0, ids.data(), tables.data());
}

TEST(TakenIdsAndTablesAreThoseOfTheirPositions) {
  std::mt19937_64 random(1);
  for (const int words_per_id : {1, 2}) {
    for (const int64_t period : {1, 2, 5}) {
      for (int64_t microbatches = 1; microbatches <= 4; ++microbatches) {
        for (int draw = 0; draw < 30; ++draw) {
          const Batch batch =
              DrawBatch(words_per_id, period, microbatches, &random);
          CheckTake(batch.view, 0, &random);
          CheckTake(batch.view,
                    static_cast<int64_t>(
                        random() % static_cast<uint64_t>(batch.view.size)),
                    &random);
        }
      }
    }
  }
}

}  // namespace
}  // namespace oneemb
