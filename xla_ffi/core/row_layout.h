// A row: [embedding | D-wide state fields | words of state per row], in one
// line of 32-bit words.
#pragma once

#include <cstdint>

#include "core/macros.h"

namespace oneemb {

// The words of a row. Where the embedding itself can be read by 16-byte loads,
// every row is kept aligned to them.
ONEEMB_HD int64_t RowWords(int64_t embedding_dim, int state_fields,
                           int state_words) {
  const int64_t words = embedding_dim * (1 + state_fields) + state_words;
  return embedding_dim % 4 == 0 ? (words + 3) / 4 * 4 : words;
}

}  // namespace oneemb
