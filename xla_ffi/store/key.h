// The identity of a row: (table, id). All 2^64 ids of all 2^16 tables are
// legal.
#pragma once

#include <cstdint>
#include <string>

#include "core/bucket.h"

namespace oneemb {

inline bool operator==(Key a, Key b) {
  return a.id == b.id && a.table == b.table;
}
inline bool operator!=(Key a, Key b) { return !(a == b); }
inline bool operator<(Key a, Key b) {
  return a.table != b.table ? a.table < b.table : a.id < b.id;
}

// The keys of a batch.
struct KeySpan {
  const Key* data;
  int64_t size;

  Key operator[](int64_t i) const { return data[i]; }
  KeySpan Slice(int64_t begin, int64_t count) const {
    return {data + begin, count};
  }
};

// Tells lists of keys apart that one process has made, in their order: 128 bits
// of a function that the process has drawn at random.
struct KeyFingerprint {
  uint64_t words[2] = {0, 0};

  // A list of none has none either.
  bool known() const { return (words[0] | words[1]) != 0; }
};
inline bool operator==(const KeyFingerprint& a, const KeyFingerprint& b) {
  return a.words[0] == b.words[0] && a.words[1] == b.words[1];
}

// "id 17 of table 3", for messages.
inline std::string ToString(Key key) {
  return "id " + std::to_string(key.id) + " of table " +
         std::to_string(key.table);
}

}  // namespace oneemb
