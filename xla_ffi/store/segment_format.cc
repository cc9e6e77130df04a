#include "store/segment_format.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstring>

#include "store/aligned_buffer.h"
#include "store/crc32c.h"

namespace oneemb {
namespace {

constexpr int64_t kRecordAlignment = 8;

// The checksum of a struct whose last member it is.
template <class T>
uint32_t CrcOf(const T& block) {
  return Crc32c(&block, static_cast<int64_t>(sizeof(T) - sizeof(block.crc)));
}

// The blocks of the format have zeros behind their struct, and these are
// checked too: a bit that nothing reads is still not what was written.
template <class T>
bool RestIsZero(const char* block) {
  return std::all_of(block + sizeof(T), block + kBlockBytes,
                     [](char c) { return c == 0; });
}

uint32_t RecordCrc(uint64_t salt, int64_t slot, const char* record,
                   int64_t bytes) {
  struct {
    uint64_t salt;
    uint64_t slot;
  } const place{salt, static_cast<uint64_t>(slot)};
  constexpr int64_t kCrcBytes = sizeof(RecordHeader::crc);
  const uint32_t crc = Crc32c(&place, sizeof(place));
  return Crc32c(record + kCrcBytes, bytes - kCrcBytes, crc);
}

Status Corrupt(const std::string& path, const std::string& fact) {
  return {StatusKind::kCorruption, path + ": " + fact};
}

}  // namespace

int64_t SegmentLayout::SlotOffset(int64_t slot) const {
  return kBlockBytes + slot / slots_per_frame * frame_bytes +
         slot % slots_per_frame * pitch;
}

int64_t SegmentLayout::DataEnd(int64_t slots) const {
  return kBlockBytes +
         (slots + slots_per_frame - 1) / slots_per_frame * frame_bytes;
}

int64_t SegmentLayout::SlotsIn(int64_t segment_bytes) const {
  const int64_t frames = std::min(
      std::max<int64_t>(1, (segment_bytes - kBlockBytes) / frame_bytes),
      kMaxSegmentSlots / slots_per_frame);
  return frames * slots_per_frame;
}

int64_t SegmentLayout::SlotsFor(int64_t rows, int64_t segment_bytes) const {
  const int64_t least = std::max<int64_t>(1, rows);
  const int64_t most = SlotsIn(segment_bytes);
  const int64_t segments = (least + most - 1) / most;
  return RoundUp((least + segments - 1) / segments, slots_per_frame);
}

SegmentLayout LayoutFor(int64_t row_bytes) {
  constexpr int64_t kPercent = 70;
  const int64_t pitch = RoundUp(
      static_cast<int64_t>(sizeof(RecordHeader)) + row_bytes, kRecordAlignment);
  int64_t frame = RoundUp(pitch, kBlockBytes);
  // Ends: many blocks waste less than one record of the frame.
  while (frame / pitch * row_bytes * 100 < frame * kPercent) {
    if (frame / pitch >= kBlockBytes / kRecordAlignment) break;
    // Rows of a few bytes never get there: their headers weigh more.
    if (row_bytes * 100 < pitch * kPercent) break;
    frame += kBlockBytes;
  }
  return {row_bytes, pitch, frame, frame / pitch};
}

int64_t KeysBytes(int64_t num_slots) {
  constexpr int64_t kBytesPerKey = sizeof(uint64_t) + sizeof(uint16_t);
  return RoundUp(num_slots * kBytesPerKey, kBlockBytes);
}

int64_t SegmentBytes(const SegmentLayout& layout, int64_t num_slots) {
  return layout.DataEnd(num_slots) + KeysBytes(num_slots) + kBlockBytes;
}

void EncodeHeader(const SegmentLayout& layout, uint64_t number, uint64_t salt,
                  char* block) {
  SegmentHeader header{};
  header.magic = kHeaderMagic;
  header.major = kSegmentMajor;
  header.row_bytes = static_cast<uint32_t>(layout.row_bytes);
  header.number = number;
  header.salt = salt;
  header.pitch = static_cast<uint32_t>(layout.pitch);
  header.frame_bytes = static_cast<uint32_t>(layout.frame_bytes);
  header.slots_per_frame = static_cast<uint32_t>(layout.slots_per_frame);
  header.crc = CrcOf(header);
  std::memset(block, 0, static_cast<size_t>(kBlockBytes));
  std::memcpy(block, &header, sizeof(header));
}

void EncodeTrailer(uint64_t number, uint64_t salt, int64_t num_slots,
                   uint32_t keys_crc, char* block) {
  SegmentTrailer trailer{};
  trailer.magic = kTrailerMagic;
  trailer.number = number;
  trailer.salt = salt;
  trailer.num_slots = static_cast<uint64_t>(num_slots);
  trailer.keys_crc = keys_crc;
  trailer.crc = CrcOf(trailer);
  std::memset(block, 0, static_cast<size_t>(kBlockBytes));
  std::memcpy(block, &trailer, sizeof(trailer));
}

Status DecodeHeader(const char* block, const std::string& path,
                    SegmentHeader* header) {
  std::memcpy(header, block, sizeof(*header));
  if (header->magic != kHeaderMagic) return Corrupt(path, "not a segment");
  if (header->crc != CrcOf(*header) || !RestIsZero<SegmentHeader>(block)) {
    return Corrupt(path, "the header's checksum is wrong");
  }
  if (header->major != kSegmentMajor) {
    return Corrupt(path, "format " + std::to_string(header->major) +
                             ", this version reads format " +
                             std::to_string(kSegmentMajor));
  }
  const int64_t row_bytes = header->row_bytes;
  if (row_bytes < kMinRowBytes || row_bytes > kMaxRowBytes) {
    return Corrupt(path, "rows of " + std::to_string(row_bytes) + " bytes");
  }
  const SegmentLayout layout = LayoutFor(row_bytes);
  if (header->pitch != layout.pitch ||
      header->frame_bytes != layout.frame_bytes ||
      header->slots_per_frame != layout.slots_per_frame) {
    return Corrupt(path, "the layout is not that of its row size");
  }
  return {};
}

Status DecodeTrailer(const char* block, const std::string& path,
                     SegmentTrailer* trailer) {
  std::memcpy(trailer, block, sizeof(*trailer));
  if (trailer->magic != kTrailerMagic) {
    return Corrupt(path, "no trailer: the file was cut off or never sealed");
  }
  if (trailer->crc != CrcOf(*trailer) || !RestIsZero<SegmentTrailer>(block)) {
    return Corrupt(path, "the trailer's checksum is wrong");
  }
  if (trailer->num_slots > static_cast<uint64_t>(kMaxSegmentSlots)) {
    return Corrupt(path, std::to_string(trailer->num_slots) + " slots");
  }
  return {};
}

void EncodeRecord(const SegmentLayout& layout, uint64_t salt, int64_t slot,
                  Key key, const char* row, char* out) {
  RecordHeader header{0, key.table, kRecordPresent, key.id};
  const auto row_bytes = static_cast<size_t>(layout.row_bytes);
  const size_t used = sizeof(header) + row_bytes;
  std::memcpy(out, &header, sizeof(header));
  std::memcpy(out + sizeof(header), row, row_bytes);
  std::memset(out + used, 0, static_cast<size_t>(layout.pitch) - used);
  header.crc = RecordCrc(salt, slot, out, static_cast<int64_t>(used));
  std::memcpy(out, &header.crc, sizeof(header.crc));
}

const char* DecodeRecord(const SegmentLayout& layout, uint64_t salt,
                         int64_t slot, const char* record, Key* key) {
  RecordHeader header{};
  std::memcpy(&header, record, sizeof(header));
  const int64_t used = static_cast<int64_t>(sizeof(header)) + layout.row_bytes;
  if (header.flags != kRecordPresent ||
      header.crc != RecordCrc(salt, slot, record, used)) {
    return nullptr;
  }
  *key = {header.id, header.table};
  return record + sizeof(header);
}

std::string SegmentName(uint64_t number, uint64_t salt) {
  std::array<char, 40> name{};
  (void)std::snprintf(name.data(), name.size(), "%016llx-%016llx.seg",
                      static_cast<unsigned long long>(number),
                      static_cast<unsigned long long>(salt));
  return name.data();
}

}  // namespace oneemb
