// The initial row of an id: a pure function of (seed, table, id, column), the
// same bits on every tier, shard count, call order, CPU and GPU.
//
// Column c takes word c % 4 of the Philox block with
//
//   key     = seed  (low word, high word)
//   counter = id (low word, high word), table, c / 4
//
// so every column has a word of its own. Normal draws are made in pairs of
// columns (c with c even, c + 1), by Box and Muller; the others one by one.
// Trained tables depend on every bit of this page: it does not change.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/macros.h"
#include "core/numeric.h"
#include "core/philox.h"

namespace oneemb {

enum class InitializerKind : int32_t {
  kConstant = 0,
  kUniform = 1,
  kNormal = 2,
  kTruncNormal = 3,
};

// What a function draws from: on a GPU, code that leaves out the others needs
// fewer registers.
enum class Draws {
  kAny,
  kUniform,  // kConstant and kUniform alone
};

// One initializer, ready to draw. What each kind reads:
//   kConstant     base: the value
//   kUniform      base: low; scale: high - low; max: the last float below high
//   kNormal       base: mean; scale: standard deviation
//   kTruncNormal  base, scale as kNormal, but scale < 0 draws the mirrored
//                 distribution; min, max: the cuts; cdf_low, cdf_span: the
//                 standard normal's probability up to the (mirrored) lower
//                 cut, and between the cuts
struct InitializerConfig {
  InitializerKind kind;
  float base;
  float scale;
  float min;
  float max;
  double cdf_low;
  double cdf_span;
};

// An initializer comes from Python as this many float64: kind, base, scale,
// min, max, cdf_low, cdf_span, zero where the kind reads nothing.
constexpr int kInitializerDoubles = 7;

ONEEMB_HD InitializerConfig DecodeInitializer(const double* p) {
  return {static_cast<InitializerKind>(static_cast<int32_t>(p[0])),
          static_cast<float>(p[1]),
          static_cast<float>(p[2]),
          static_cast<float>(p[3]),
          static_cast<float>(p[4]),
          p[5],
          p[6]};
}

namespace initializers_internal {

// The Philox key of a seed, and the counter of block 0 of a row.
struct RowDraws {
  uint32_t key[2];
  uint32_t counter[4];
};

ONEEMB_HD RowDraws MakeRowDraws(uint64_t seed, uint16_t table, uint64_t id) {
  return {
      {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)},
      {static_cast<uint32_t>(id), static_cast<uint32_t>(id >> 32), table, 0}};
}

// 24 bits of a word in [0, 1), exactly.
ONEEMB_HD float Fraction(uint32_t word) {
  return static_cast<float>(static_cast<int32_t>(word >> 8)) * 0x1p-24F;
}

ONEEMB_HD float UniformValue(const InitializerConfig& config, uint32_t word) {
  const float x = Fma(config.scale, Fraction(word), config.base);
  return x < config.max ? x : config.max;
}

// Box and Muller: radius from one word, angle from the other.
ONEEMB_HD void NormalPair(const InitializerConfig& config, uint32_t word0,
                          uint32_t word1, float* x0, float* x1) {
  // In (0, 1], 31 bits near 0: the radius reaches 6.6.
  const float u = Fma(static_cast<float>(static_cast<int32_t>(word0 >> 1)),
                      0x1p-31F, 0x1p-32F);
  const float radius = Sqrt(-2.0F * Log(u));
  float sin = 0.0F;
  float cos = 0.0F;
  SinCosTwoPi(Fraction(word1), &sin, &cos);
  *x0 = Fma(config.scale, radius * cos, config.base);
  *x1 = Fma(config.scale, radius * sin, config.base);
}

// By the inverse of the distribution function, between the cuts.
ONEEMB_HD float TruncNormalValue(const InitializerConfig& config,
                                 uint32_t word) {
  const double u = (static_cast<double>(word) + 0.5) * 0x1p-32;
  const double z = NormalQuantile(Fma(config.cdf_span, u, config.cdf_low));
  const float x = static_cast<float>(Fma(static_cast<double>(config.scale), z,
                                         static_cast<double>(config.base)));
  const float below = x < config.max ? x : config.max;
  return below > config.min ? below : config.min;
}

}  // namespace initializers_internal

// Columns 4 * block ... 4 * block + 3 of an initial row.
template <Draws kDraws = Draws::kAny>
ONEEMB_HD void InitialBlock(const InitializerConfig& config, uint64_t seed,
                            uint16_t table, uint64_t id, uint32_t block,
                            float out[4]) {
  using namespace initializers_internal;  // NOLINT(google-build-using-namespace)
  RowDraws draws = MakeRowDraws(seed, table, id);
  draws.counter[3] = block;
  const PhiloxBlock words = Philox(draws.counter, draws.key);
  if (config.kind == InitializerKind::kConstant) {
    for (int c = 0; c < 4; ++c) out[c] = config.base;
  } else if (kDraws == Draws::kUniform ||
             config.kind == InitializerKind::kUniform) {
    for (int c = 0; c < 4; ++c) out[c] = UniformValue(config, words.w[c]);
  } else if constexpr (kDraws == Draws::kAny) {
    if (config.kind == InitializerKind::kNormal) {
      for (int c = 0; c < 4; c += 2) {
        NormalPair(config, words.w[c], words.w[c + 1], &out[c], &out[c + 1]);
      }
    } else {
      for (int c = 0; c < 4; ++c) out[c] = TruncNormalValue(config, words.w[c]);
    }
  }
}

// One column of an initial row.
ONEEMB_HD float InitialValue(const InitializerConfig& config, uint64_t seed,
                             uint16_t table, uint64_t id, int32_t column) {
  float block[4];
  InitialBlock(config, seed, table, id, static_cast<uint32_t>(column / 4),
               block);
  return block[column % 4];
}

// How the rows of a table begin. An embedding is made of columns side by side,
// each with an initializer per table.
struct RowInitializers {
  uint64_t seed;
  int32_t num_columns;
  const int32_t* column_ends;        // [num_columns], rising
  const InitializerConfig* configs;  // [num_tables][num_columns]
  // Tables share their keys: the draws of an id leave the table out, so that
  // tables with equal initializers agree on a row that nobody has trained.
  bool shared_keys = false;

  // The table that the draws of an id of `table` know.
  ONEEMB_HD uint16_t DrawTable(uint16_t table) const {
    return shared_keys ? uint16_t{0} : table;
  }
};

// Columns 4 * block ... 4 * block + 3 of the initial row of (table, id); those
// past the end of the row are undefined.
template <Draws kDraws = Draws::kAny>
ONEEMB_HD void InitialColumns(const RowInitializers& rows, uint16_t table,
                              uint64_t id, uint32_t block, float out[4]) {
  const InitializerConfig* const configs =
      rows.configs + int64_t{table} * rows.num_columns;
  const uint16_t draw_table = rows.DrawTable(table);
  const int32_t first = static_cast<int32_t>(4 * block);
  int32_t k = 0;
  while (k + 1 < rows.num_columns && rows.column_ends[k] <= first) ++k;
  InitialBlock<kDraws>(configs[k], rows.seed, draw_table, id, block, out);
  if (k + 1 == rows.num_columns || rows.column_ends[k] >= first + 4) return;
  for (int32_t c = 1; c < 4; ++c) {
    if (k + 1 == rows.num_columns || first + c < rows.column_ends[k]) continue;
    ++k;
    float next[4];
    InitialBlock<kDraws>(configs[k], rows.seed, draw_table, id, block, next);
    for (int32_t i = c; i < 4; ++i) out[i] = next[i];
  }
}

namespace initializers_internal {

// Columns worked on at once: enough for vectors, few enough for the cache.
constexpr int32_t kChunk = 64;
static_assert(kChunk % (4 * kPhiloxLanes) == 0, "a chunk is whole groups");

// The words of columns 4 * block ... 4 * block + n - 1, and of those that fill
// the last group of blocks.
inline void DrawWords(RowDraws draws, uint32_t block, int32_t n,
                      uint32_t* ONEEMB_RESTRICT words) {
  for (int32_t c = 0; c < n; c += 4 * kPhiloxLanes) {
    draws.counter[3] = block + static_cast<uint32_t>(c / 4);
    PhiloxLanes lanes;
    Philox(draws.counter, draws.key, &lanes);
    for (int i = 0; i < kPhiloxLanes; ++i) {
      for (int w = 0; w < 4; ++w) words[c + 4 * i + w] = lanes.w[w][i];
    }
  }
}

// The values that belong to n words; n is even.
template <InitializerKind kind>
inline void WordsToValues(const InitializerConfig& config, int32_t n,
                          const uint32_t* ONEEMB_RESTRICT words,
                          float* ONEEMB_RESTRICT values) {
  if constexpr (kind == InitializerKind::kNormal) {
    for (int32_t c = 0; c < n; c += 2) {
      NormalPair(config, words[c], words[c + 1], &values[c], &values[c + 1]);
    }
  } else if constexpr (kind == InitializerKind::kUniform) {
    for (int32_t c = 0; c < n; ++c) values[c] = UniformValue(config, words[c]);
  } else {
    for (int32_t c = 0; c < n; ++c) {
      values[c] = TruncNormalValue(config, words[c]);
    }
  }
}

// Columns begin ... end - 1 of a row.
template <InitializerKind kind>
inline void FillColumns(const InitializerConfig& config, const RowDraws& draws,
                        int32_t begin, int32_t end,
                        float* ONEEMB_RESTRICT out) {
  for (int32_t first = begin / 4 * 4; first < end; first += kChunk) {
    const int32_t last = end < first + kChunk ? end : first + kChunk;
    uint32_t words[kChunk];
    float values[kChunk] = {};
    DrawWords(draws, static_cast<uint32_t>(first / 4), last - first, words);
    WordsToValues<kind>(config, (last - first + 1) / 2 * 2, words, values);
    const int32_t from = first < begin ? begin : first;
    memcpy(out + from, values + (from - first),
           static_cast<size_t>(last - from) * sizeof(float));
  }
}

}  // namespace initializers_internal

// Writes the initial row of (table, id): InitialValue of every column, for the
// CPU several blocks at a time.
inline void FillInitialRow(const RowInitializers& rows, uint16_t table,
                           uint64_t id, float* ONEEMB_RESTRICT out) {
  using namespace initializers_internal;  // NOLINT(google-build-using-namespace)
  const InitializerConfig* const configs =
      rows.configs + int64_t{table} * rows.num_columns;
  const RowDraws draws = MakeRowDraws(rows.seed, rows.DrawTable(table), id);
  int32_t begin = 0;
  for (int32_t k = 0; k < rows.num_columns; ++k) {
    const InitializerConfig& config = configs[k];
    const int32_t end = rows.column_ends[k];
    switch (config.kind) {
      case InitializerKind::kConstant:
        for (int32_t c = begin; c < end; ++c) out[c] = config.base;
        break;
      case InitializerKind::kUniform:
        FillColumns<InitializerKind::kUniform>(config, draws, begin, end, out);
        break;
      case InitializerKind::kNormal:
        FillColumns<InitializerKind::kNormal>(config, draws, begin, end, out);
        break;
      case InitializerKind::kTruncNormal:
        FillColumns<InitializerKind::kTruncNormal>(config, draws, begin, end,
                                                   out);
        break;
    }
    begin = end;
  }
}

}  // namespace oneemb
