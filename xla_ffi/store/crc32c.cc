#include "store/crc32c.h"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace oneemb {
namespace {

// x^32 + x^28 + x^27 + ... + 1, the lowest bit standing for x^31.
constexpr uint32_t kPolynomial = 0x82F63B78;

using ByteTable = std::array<uint32_t, 256>;

constexpr ByteTable MakeByteTable() {
  ByteTable table{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t state = byte;
    for (int bit = 0; bit < 8; ++bit) {
      state = (state >> 1) ^ ((state & 1) != 0 ? kPolynomial : 0);
    }
    table[byte] = state;
  }
  return table;
}

// The state after one more byte.
constexpr uint32_t Step(const ByteTable& table, uint32_t state, uint8_t byte) {
  return table[(state ^ byte) & 0xff] ^ (state >> 8);
}

// Table k gives what a byte adds to the state 7 - k bytes later.
constexpr std::array<ByteTable, 8> MakeWordTables() {
  std::array<ByteTable, 8> tables{};
  tables[7] = MakeByteTable();
  for (size_t k = 7; k > 0; --k) {
    for (size_t byte = 0; byte < 256; ++byte) {
      tables[k - 1][byte] = Step(tables[7], tables[k][byte], 0);
    }
  }
  return tables;
}

constexpr std::array<ByteTable, 8> kWordTables = MakeWordTables();

uint64_t LoadWord(const uint8_t* data) {
  uint64_t word = 0;
  memcpy(&word, data, sizeof(word));
  return word;
}

#if defined(__x86_64__)
// The instruction takes three cycles but starts every cycle, so three lanes of
// this many bytes go side by side.
constexpr int64_t kLane = 256;

// Table k gives the state after kLane zero bytes that began with byte k of a
// state set and the others zero. The state is linear in its bits: each bit is
// followed alone.
constexpr std::array<ByteTable, 4> MakeLaneTables() {
  const ByteTable step = MakeByteTable();
  std::array<uint32_t, 32> of_bit{};
  for (uint32_t bit = 0; bit < 32; ++bit) {
    uint32_t state = uint32_t{1} << bit;
    for (int64_t i = 0; i < kLane; ++i) state = Step(step, state, 0);
    of_bit[bit] = state;
  }
  std::array<ByteTable, 4> tables{};
  for (size_t k = 0; k < 4; ++k) {
    for (size_t byte = 0; byte < 256; ++byte) {
      for (size_t bit = 0; bit < 8; ++bit) {
        const uint32_t sum = tables[k][byte] ^ of_bit[8 * k + bit];
        if ((byte >> bit & 1) != 0) tables[k][byte] = sum;
      }
    }
  }
  return tables;
}

constexpr std::array<ByteTable, 4> kLaneTables = MakeLaneTables();

uint64_t SkipLane(uint64_t state) {
  return kLaneTables[0][state & 0xff] ^ kLaneTables[1][(state >> 8) & 0xff] ^
         kLaneTables[2][(state >> 16) & 0xff] ^ kLaneTables[3][state >> 24];
}
#endif

}  // namespace

namespace crc32c_internal {

uint32_t Portable(const void* data, int64_t bytes, uint32_t crc) {
  const auto* p = static_cast<const uint8_t*>(data);
  uint32_t state = ~crc;
  for (; bytes >= 8; bytes -= 8, p += 8) {
    uint32_t next = 0;
    for (size_t k = 0; k < 8; ++k) {
      const uint32_t mixed = k < 4 ? state >> (8 * k) : 0;
      next ^= kWordTables[k][(mixed ^ p[k]) & 0xff];
    }
    state = next;
  }
  for (; bytes > 0; --bytes) state = Step(kWordTables[7], state, *p++);
  return ~state;
}

#if defined(__x86_64__)
bool HasHardware() { return __builtin_cpu_supports("sse4.2") != 0; }

__attribute__((target("sse4.2"))) uint32_t Hardware(const void* data,
                                                    int64_t bytes,
                                                    uint32_t crc) {
  const auto* p = static_cast<const uint8_t*>(data);
  uint64_t state = ~crc;
  for (; bytes >= 3 * kLane; bytes -= 3 * kLane, p += 3 * kLane) {
    uint64_t second = 0;
    uint64_t third = 0;
    for (int64_t i = 0; i < kLane; i += 8) {
      state = _mm_crc32_u64(state, LoadWord(p + i));
      second = _mm_crc32_u64(second, LoadWord(p + kLane + i));
      third = _mm_crc32_u64(third, LoadWord(p + 2 * kLane + i));
    }
    state = SkipLane(SkipLane(state) ^ second) ^ third;
  }
  for (; bytes >= 8; bytes -= 8, p += 8) {
    state = _mm_crc32_u64(state, LoadWord(p));
  }
  auto narrow = static_cast<uint32_t>(state);
  for (; bytes > 0; --bytes) narrow = _mm_crc32_u8(narrow, *p++);
  return ~narrow;
}
#else
bool HasHardware() { return false; }
uint32_t Hardware(const void* data, int64_t bytes, uint32_t crc) {
  return Portable(data, bytes, crc);
}
#endif

}  // namespace crc32c_internal

uint32_t Crc32c(const void* data, int64_t bytes, uint32_t crc) {
  return crc32c_internal::HasHardware()
             ? crc32c_internal::Hardware(data, bytes, crc)
             : crc32c_internal::Portable(data, bytes, crc);
}

}  // namespace oneemb
