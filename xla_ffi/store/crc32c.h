// CRC-32C (Castagnoli), the checksum of everything that the store writes.
#pragma once

#include <cstdint>

namespace oneemb {

// The checksum of `bytes` bytes at `data`, going on from `crc`, that of what
// came before them. Uses the CPU's own instruction where it has one.
// Thread-safe.
uint32_t Crc32c(const void* data, int64_t bytes, uint32_t crc = 0);

namespace crc32c_internal {
// The two ways in which Crc32c works, for tests.
uint32_t Portable(const void* data, int64_t bytes, uint32_t crc);
// Whether Hardware may be called here.
bool HasHardware();
uint32_t Hardware(const void* data, int64_t bytes, uint32_t crc);
}  // namespace crc32c_internal

}  // namespace oneemb
