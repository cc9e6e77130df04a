// The bytes of segments and manifests. They may change only together with the
// major version of the format (and docs/formats/): users have such files.
#include <algorithm>
#include <cstring>
#include <sstream>

#include "check.h"
#include "store/aligned_buffer.h"
#include "store/manifest.h"
#include "store/segment_format.h"
#include "test_store.h"

namespace oneemb {
namespace {

std::string Hex(const char* data, int64_t bytes) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string hex;
  for (int64_t i = 0; i < bytes; ++i) {
    const auto byte = static_cast<unsigned char>(data[i]);
    hex += kDigits[byte / 16];
    hex += kDigits[byte % 16];
  }
  return hex;
}

constexpr uint64_t kNumber = 0x0102030405060708;
constexpr uint64_t kSalt = 0x1122334455667788;

TEST(GoldenHeader) {
  std::vector<char> block(kBlockBytes, 'x');
  EncodeHeader(LayoutFor(32), kNumber, kSalt, block.data());
  CHECK_EQ(Hex(block.data(), 52),
           "0a454d5345473031"
           "01000000"
           "20000000"
           "0807060504030201"
           "8877665544332211"
           "30000000"
           "00100000"
           "55000000"
           "18a62d3d"
           "00000000");
}

TEST(GoldenTrailer) {
  std::vector<char> block(kBlockBytes, 'x');
  EncodeTrailer(kNumber, kSalt, 85, 0x04030201, block.data());
  CHECK_EQ(Hex(block.data(), 44),
           "0a454d4654523031"
           "0807060504030201"
           "8877665544332211"
           "5500000000000000"
           "01020304"
           "b95cca8d"
           "00000000");
}

TEST(GoldenRecord) {
  const SegmentLayout layout = LayoutFor(32);
  std::vector<char> record(static_cast<size_t>(layout.pitch), 'x');
  EncodeRecord(layout, kSalt, 1, {0x0102030405060708, 0x0a0b},
               std::string(32, 'E').data(), record.data());
  CHECK_EQ(Hex(record.data(), 20),
           "b95264f4"
           "0b0a"
           "0100"
           "0807060504030201"
           "45454545");
}

TEST(GoldenManifest) {
  Manifest manifest;
  manifest.row_bytes = 32;
  manifest.num_rows = 3;
  manifest.segments = {{7, kSalt, 85, 1, 0x01020304}, {8, 9, 170, 2, 5}};
  manifest.user = "hello";
  const std::string bytes = EncodeManifest(manifest);
  CHECK_EQ(Hex(bytes.data(), static_cast<int64_t>(bytes.size())),
           "0a454d4d414e3031"
           "01000000"
           "20000000"
           "0300000000000000"
           "0200000000000000"
           "0500000000000000"
           "0700000000000000"
           "8877665544332211"
           "5500000000000000"
           "0100000000000000"
           "04030201"
           "00000000"
           "0800000000000000"
           "0900000000000000"
           "aa00000000000000"
           "0200000000000000"
           "05000000"
           "00000000"
           "68656c6c6f"
           "f4b20577");
}

TEST(NamesOfSegments) {
  CHECK_EQ(SegmentName(7, kSalt), "0000000000000007-1122334455667788.seg");
}

TEST(FramesWasteLittle) {
  for (int64_t row = kMinRowBytes; row <= kMaxRowBytes; ++row) {
    const SegmentLayout layout = LayoutFor(row);
    CHECK_EQ(layout.frame_bytes % kBlockBytes, 0);
    CHECK_EQ(layout.pitch % 8, 0);
    CHECK(layout.pitch >= row + 16 && layout.pitch < row + 24);
    CHECK(layout.slots_per_frame * layout.pitch <= layout.frame_bytes);
    CHECK(layout.frame_bytes < layout.pitch * 4 + 2 * kBlockBytes);
    const bool full =
        layout.slots_per_frame * row * 100 >= layout.frame_bytes * 70;
    CHECK(full || row * 100 < layout.pitch * 70);
  }
  // Rows of the usual widths up to 1.5 KiB are one block each.
  for (const int64_t row : {4, 64, 128, 256, 512, 768, 1024, 1536}) {
    CHECK_EQ(LayoutFor(row).frame_bytes, kBlockBytes);
  }
}

TEST(SlotsFillASegment) {
  const SegmentLayout layout = LayoutFor(100);
  CHECK_EQ(layout.SlotOffset(0), 4096);
  CHECK_EQ(layout.SlotOffset(1), 4096 + layout.pitch);
  CHECK_EQ(layout.SlotOffset(layout.slots_per_frame), 8192);
  CHECK_EQ(layout.DataEnd(0), 4096);
  CHECK_EQ(layout.DataEnd(1), 8192);
  CHECK_EQ(layout.SlotsIn(1), layout.slots_per_frame);
  CHECK(LayoutFor(4).SlotsIn(int64_t{1} << 40) <= kMaxSegmentSlots);
}

TEST(SegmentsAreAsLargeAsTheirRowsNeed) {
  constexpr int64_t kBytes = 100 * kBlockBytes;
  for (const int64_t row : {4, 100, 1000, 3000, 65536}) {
    const SegmentLayout layout = LayoutFor(row);
    const int64_t frame = layout.slots_per_frame;
    const int64_t most = layout.SlotsIn(kBytes);
    for (const int64_t none : {-1, 0, 1}) {
      CHECK_EQ(layout.SlotsFor(none, kBytes), frame);
    }
    for (int64_t rows = 1; rows <= 3 * most + 1; ++rows) {
      const int64_t slots = layout.SlotsFor(rows, kBytes);
      CHECK(slots % frame == 0 && slots <= most);
      const int64_t segments = (rows + most - 1) / most;
      CHECK(slots * segments >= rows);
      CHECK((slots - frame) * segments < rows);
    }
  }
  const int64_t many = int64_t{1} << 40;
  CHECK(LayoutFor(4).SlotsFor(many, many) <= kMaxSegmentSlots);
}

TEST(ARecordIsOfItsSegmentSlotAndKeyAlone) {
  for (const int64_t row_bytes : {4, 7, 100, 4096}) {
    const SegmentLayout layout = LayoutFor(row_bytes);
    const Key written{~uint64_t{0}, 65535};
    const std::vector<char> row = MakeRow(written, 1, row_bytes);
    std::vector<char> record(static_cast<size_t>(layout.pitch));
    EncodeRecord(layout, kSalt, 5, written, row.data(), record.data());
    Key key{};
    const char* const read =
        DecodeRecord(layout, kSalt, 5, record.data(), &key);
    CHECK(read != nullptr && key == written);
    CHECK(std::memcmp(read, row.data(), row.size()) == 0);
    CHECK(DecodeRecord(layout, kSalt + 1, 5, record.data(), &key) == nullptr);
    CHECK(DecodeRecord(layout, kSalt, 6, record.data(), &key) == nullptr);
    const int64_t used = 16 + row_bytes;
    for (int64_t bit = 0; bit < used * 8; ++bit) {
      char& byte = record[static_cast<size_t>(bit / 8)];
      byte = static_cast<char>(byte ^ (1 << (bit % 8)));
      CHECK(DecodeRecord(layout, kSalt, 5, record.data(), &key) == nullptr);
      byte = static_cast<char>(byte ^ (1 << (bit % 8)));
    }
    std::fill(record.begin(), record.end(), '\0');
    CHECK(DecodeRecord(layout, kSalt, 5, record.data(), &key) == nullptr);
  }
}

TEST(EveryBitOfAManifestCounts) {
  Manifest manifest;
  manifest.row_bytes = 100;
  manifest.num_rows = 2;
  manifest.segments = {{1, 2, 64, 2, 3}};
  manifest.user = "words";
  std::string bytes = EncodeManifest(manifest);
  const auto size = static_cast<int64_t>(bytes.size());
  Manifest read;
  CHECK_OK(DecodeManifest(bytes.data(), size, "m", &read));
  CHECK_EQ(read.user, "words");
  CHECK_EQ(read.num_rows, 2);
  CHECK_EQ(read.segments.size(), size_t{1});
  for (size_t bit = 0; bit < bytes.size() * 8; ++bit) {
    std::string bad = bytes;
    bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << (bit % 8)));
    const Status status = DecodeManifest(bad.data(), size, "m", &read);
    CHECK_EQ(status.kind(), StatusKind::kCorruption);
    CHECK_EQ(status.message().rfind("m: ", 0), size_t{0});
  }
  for (int64_t cut = 0; cut < size; ++cut) {
    CHECK(!DecodeManifest(bytes.data(), cut, "m", &read).ok());
  }
}

}  // namespace
}  // namespace oneemb
