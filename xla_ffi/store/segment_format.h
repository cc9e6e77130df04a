// The bytes of a segment: an append-only file of rows of one width.
//
//   | header 4 KiB | frames | ids u64[slots] | tables u16[slots] | 0 | trailer
//   |
//
// A frame holds slots_per_frame records, one every `pitch` bytes, and is a
// multiple of 4 KiB, so that one row is one read of few blocks and no block is
// ever written twice. docs/formats/segment.md draws it. All integers are
// little-endian; a machine of the other kind finds a wrong magic number.
#pragma once

#include <cstdint>
#include <string>

#include "store/key.h"
#include "store/status.h"

namespace oneemb {

constexpr int64_t kMinRowBytes = 4;
constexpr int64_t kMaxRowBytes = int64_t{64} << 10;
// The largest number of slots that a segment may have.
constexpr int64_t kMaxSegmentSlots = int64_t{1} << 22;

// Where the rows of one width lie in a segment.
struct SegmentLayout {
  int64_t row_bytes;
  int64_t pitch;
  int64_t frame_bytes;
  int64_t slots_per_frame;

  int64_t SlotOffset(int64_t slot) const;
  // Bytes of header and frames that `slots` slots take.
  int64_t DataEnd(int64_t slots) const;
  // Slots of the whole frames in a segment of about this many bytes; at least
  // one frame, at most kMaxSegmentSlots.
  int64_t SlotsIn(int64_t segment_bytes) const;
  // Slots of each segment where so many rows are all there will be: no more
  // segments than of the slots above, and these no larger than they have to be,
  // for a segment has its room on the disk from the beginning.
  int64_t SlotsFor(int64_t rows, int64_t segment_bytes) const;
};

// The smallest frame of which rows fill at least 70 %.
SegmentLayout LayoutFor(int64_t row_bytes);

// First block of a segment.
struct SegmentHeader {
  uint64_t magic;
  uint16_t major;  // a reader refuses a major it does not know
  uint16_t minor;
  uint32_t row_bytes;
  uint64_t number;  // never used twice in a store
  uint64_t salt;    // random: tells this file's records from any other's
  uint32_t pitch;
  uint32_t frame_bytes;
  uint32_t slots_per_frame;
  uint32_t crc;  // of the bytes before it
};
static_assert(sizeof(SegmentHeader) == 48, "part of the format");

// Last block of a sealed segment.
struct SegmentTrailer {
  uint64_t magic;
  uint64_t number;
  uint64_t salt;
  uint64_t num_slots;
  uint32_t keys_crc;  // of ids and tables, padding included
  uint32_t crc;       // of the bytes before it
};
static_assert(sizeof(SegmentTrailer) == 40, "part of the format");

struct RecordHeader {
  uint32_t crc;  // of salt u64, slot u32, then all that follows this field
  uint16_t table;
  uint16_t flags;  // kRecordPresent
  uint64_t id;
};
static_assert(sizeof(RecordHeader) == 16, "part of the format");

constexpr uint64_t kHeaderMagic = 0x31304745534D450AULL;   // "\nEMSEG01"
constexpr uint64_t kTrailerMagic = 0x31305254464D450AULL;  // "\nEMFTR01"
constexpr uint16_t kSegmentMajor = 1;
constexpr uint16_t kRecordPresent = 1;

// Bytes of the arrays of ids and tables, padded to whole blocks.
int64_t KeysBytes(int64_t num_slots);
// Size of a sealed segment.
int64_t SegmentBytes(const SegmentLayout& layout, int64_t num_slots);

// Writes a whole block: the struct, its checksum and zeros.
void EncodeHeader(const SegmentLayout& layout, uint64_t number, uint64_t salt,
                  char* block);
void EncodeTrailer(uint64_t number, uint64_t salt, int64_t num_slots,
                   uint32_t keys_crc, char* block);
// kCorruption, naming `path`, unless the block holds what the format says.
Status DecodeHeader(const char* block, const std::string& path,
                    SegmentHeader* header);
Status DecodeTrailer(const char* block, const std::string& path,
                     SegmentTrailer* trailer);

// Writes header and row; out has `pitch` bytes, of which the rest is zeroed.
void EncodeRecord(const SegmentLayout& layout, uint64_t salt, int64_t slot,
                  Key key, const char* row, char* out);
// The row of a record that is whole and belongs to this slot, else null.
const char* DecodeRecord(const SegmentLayout& layout, uint64_t salt,
                         int64_t slot, const char* record, Key* key);

// "0000000000000007-8d3f….seg".
std::string SegmentName(uint64_t number, uint64_t salt);

}  // namespace oneemb
