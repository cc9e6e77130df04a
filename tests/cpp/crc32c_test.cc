// The checksum against published values, and against one bit at a time.
#include "store/crc32c.h"

#include <cstddef>
#include <random>
#include <string>
#include <vector>

#include "check.h"

namespace oneemb {
namespace {

using Bytes = std::vector<unsigned char>;
using Function = uint32_t (*)(const void*, int64_t, uint32_t);

// Every way to compute it that works here.
std::vector<Function> Functions() {
  std::vector<Function> functions = {&Crc32c, &crc32c_internal::Portable};
  if (crc32c_internal::HasHardware()) {
    functions.push_back(&crc32c_internal::Hardware);
  }
  return functions;
}

uint32_t Of(Function function, const Bytes& bytes, uint32_t crc = 0) {
  return function(bytes.data(), static_cast<int64_t>(bytes.size()), crc);
}

// By the definition: divides the bits by the polynomial.
uint32_t BitByBit(const Bytes& bytes) {
  uint32_t state = 0xFFFFFFFF;
  for (const unsigned char byte : bytes) {
    for (int bit = 0; bit < 8; ++bit) {
      const uint32_t low = (state ^ (byte >> bit)) & 1;
      state = (state >> 1) ^ (low != 0 ? 0x82F63B78U : 0U);
    }
  }
  return ~state;
}

Bytes RandomBytes(std::mt19937_64* random, size_t size) {
  Bytes bytes(size);
  for (unsigned char& byte : bytes) {
    byte = static_cast<unsigned char>((*random)());
  }
  return bytes;
}

// RFC 3720, B.4, and the check value of the catalogue of CRCs.
TEST(PublishedValues) {
  Bytes rising(32);
  Bytes falling(32);
  for (size_t i = 0; i < 32; ++i) {
    rising[i] = static_cast<unsigned char>(i);
    falling[i] = static_cast<unsigned char>(31 - i);
  }
  const Bytes digits = {'1', '2', '3', '4', '5', '6', '7', '8', '9'};
  for (const Function function : Functions()) {
    CHECK_EQ(Of(function, Bytes(32, 0x00)), 0x8A9136AAU);
    CHECK_EQ(Of(function, Bytes(32, 0xFF)), 0x62A8AB43U);
    CHECK_EQ(Of(function, rising), 0x46DD794EU);
    CHECK_EQ(Of(function, falling), 0x113FDB5CU);
    CHECK_EQ(Of(function, digits), 0xE3069283U);
    CHECK_EQ(function(nullptr, 0, 0), 0U);
  }
}

TEST(EveryLengthIsTheDefinition) {
  std::mt19937_64 random(1);
  std::vector<size_t> sizes = {767, 768, 769, 1535, 1536, 1560, 4096, 5000};
  for (size_t size = 0; size < 300; ++size) sizes.push_back(size);
  for (const size_t size : sizes) {
    const Bytes bytes = RandomBytes(&random, size);
    const uint32_t expected = BitByBit(bytes);
    for (const Function function : Functions()) {
      CHECK_EQ(Of(function, bytes), expected);
    }
  }
}

TEST(AnyAddressWillDo) {
  std::mt19937_64 random(2);
  const Bytes bytes = RandomBytes(&random, 2000);
  for (size_t shift = 0; shift < 16; ++shift) {
    const Bytes part(bytes.begin() + static_cast<ptrdiff_t>(shift),
                     bytes.end());
    const uint32_t expected = BitByBit(part);
    for (const Function function : Functions()) {
      CHECK_EQ(function(bytes.data() + shift,
                        static_cast<int64_t>(bytes.size() - shift), 0),
               expected);
    }
  }
}

TEST(GoesOnFromWhatCameBefore) {
  std::mt19937_64 random(3);
  const Bytes bytes = RandomBytes(&random, 3000);
  const auto size = static_cast<int64_t>(bytes.size());
  for (const Function function : Functions()) {
    const uint32_t whole = Of(function, bytes);
    for (int i = 0; i < 200; ++i) {
      const auto cut = static_cast<int64_t>(random() % (bytes.size() + 1));
      const uint32_t first = function(bytes.data(), cut, 0);
      CHECK_EQ(function(bytes.data() + cut, size - cut, first), whole);
    }
  }
}

}  // namespace
}  // namespace oneemb
