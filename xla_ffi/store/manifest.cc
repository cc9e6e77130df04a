#include "store/manifest.h"

#include <algorithm>
#include <cstring>

#include "store/crc32c.h"
#include "store/segment_format.h"

namespace oneemb {
namespace {

constexpr uint64_t kManifestMagic = 0x31304E414D4D450AULL;  // "\nEMMAN01"
constexpr uint16_t kManifestMajor = 1;

struct Head {
  uint64_t magic;
  uint16_t major;
  uint16_t minor;
  uint32_t row_bytes;
  uint64_t num_rows;
  uint64_t num_segments;
  uint64_t user_bytes;
};
static_assert(sizeof(Head) == 40, "part of the format");

struct Line {
  uint64_t number;
  uint64_t salt;
  uint64_t num_slots;
  uint64_t num_live;
  uint32_t live_crc;
  uint32_t zero;
};
static_assert(sizeof(Line) == 40, "part of the format");

using Crc = uint32_t;  // of all bytes before it, at the end

Status Corrupt(const std::string& path, const std::string& fact) {
  return {StatusKind::kCorruption, path + ": " + fact};
}

Status CheckHead(const Head& head, int64_t bytes, const std::string& path) {
  if (head.magic != kManifestMagic) return Corrupt(path, "not a manifest");
  if (head.major != kManifestMajor) {
    return Corrupt(path, "format " + std::to_string(head.major) +
                             ", this version reads format " +
                             std::to_string(kManifestMajor));
  }
  if (head.row_bytes < kMinRowBytes || head.row_bytes > kMaxRowBytes) {
    return Corrupt(path,
                   "rows of " + std::to_string(head.row_bytes) + " bytes");
  }
  const auto rest = static_cast<uint64_t>(bytes) - sizeof(Head) - sizeof(Crc);
  if (head.user_bytes > static_cast<uint64_t>(kMaxUserBytes) ||
      head.user_bytes > rest ||
      head.num_segments != (rest - head.user_bytes) / sizeof(Line) ||
      (rest - head.user_bytes) % sizeof(Line) != 0) {
    return Corrupt(path, "its parts do not add up to its size");
  }
  return {};
}

Status CheckLine(const Line& line, const std::string& path) {
  if (line.num_slots > static_cast<uint64_t>(kMaxSegmentSlots) ||
      line.num_live > line.num_slots || line.num_live == 0 || line.zero != 0) {
    return Corrupt(
        path, "an impossible segment " + SegmentName(line.number, line.salt));
  }
  return {};
}

void Append(std::string* out, const void* data, size_t bytes) {
  out->append(static_cast<const char*>(data), bytes);
}

}  // namespace

int64_t LiveBytes(int64_t num_slots) { return (num_slots + 63) / 64 * 8; }

std::string EncodeManifest(const Manifest& manifest) {
  std::string out;
  const Head head{kManifestMagic,
                  kManifestMajor,
                  0,
                  static_cast<uint32_t>(manifest.row_bytes),
                  static_cast<uint64_t>(manifest.num_rows),
                  manifest.segments.size(),
                  manifest.user.size()};
  Append(&out, &head, sizeof(head));
  for (const ManifestSegment& segment : manifest.segments) {
    const Line line{segment.number,
                    segment.salt,
                    static_cast<uint64_t>(segment.num_slots),
                    static_cast<uint64_t>(segment.num_live),
                    segment.live_crc,
                    0};
    Append(&out, &line, sizeof(line));
  }
  out += manifest.user;
  const Crc crc = Crc32c(out.data(), static_cast<int64_t>(out.size()));
  Append(&out, &crc, sizeof(crc));
  return out;
}

Status DecodeManifest(const char* data, int64_t bytes, const std::string& path,
                      Manifest* manifest) {
  constexpr auto kLeast = static_cast<int64_t>(sizeof(Head) + sizeof(Crc));
  if (bytes < kLeast) return Corrupt(path, "cut off");
  constexpr auto kCrcBytes = static_cast<int64_t>(sizeof(Crc));
  Crc crc = 0;
  std::memcpy(&crc, data + bytes - kCrcBytes, sizeof(crc));
  if (crc != Crc32c(data, bytes - kCrcBytes)) {
    return Corrupt(path, "its checksum is wrong");
  }
  Head head{};
  std::memcpy(&head, data, sizeof(head));
  ONEEMB_RETURN_IF_ERROR(CheckHead(head, bytes, path));
  manifest->row_bytes = head.row_bytes;
  manifest->num_rows = static_cast<int64_t>(head.num_rows);
  manifest->segments.clear();
  const char* next = data + sizeof(head);
  uint64_t num_rows = 0;
  for (uint64_t s = 0; s < head.num_segments; ++s, next += sizeof(Line)) {
    Line line{};
    std::memcpy(&line, next, sizeof(line));
    ONEEMB_RETURN_IF_ERROR(CheckLine(line, path));
    num_rows += line.num_live;
    manifest->segments.push_back(
        {line.number, line.salt, static_cast<int64_t>(line.num_slots),
         static_cast<int64_t>(line.num_live), line.live_crc});
  }
  if (num_rows != head.num_rows) {
    return Corrupt(path, "its segments do not add up to " +
                             std::to_string(head.num_rows) + " rows");
  }
  manifest->user.assign(next, head.user_bytes);
  return {};
}

}  // namespace oneemb
