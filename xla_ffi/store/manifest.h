// The bytes of a snapshot's two own files, beside its segments:
//
//   MANIFEST  what the snapshot is made of, and the user's own words
//   LIVE      for each segment in turn, one bit a slot, in whole u64 words
//
// docs/formats/manifest.md draws them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "store/status.h"

namespace oneemb {

constexpr int64_t kMaxUserBytes = int64_t{1} << 20;

struct ManifestSegment {
  uint64_t number;
  uint64_t salt;
  int64_t num_slots;
  int64_t num_live;
  uint32_t live_crc;  // of its part of LIVE
};

struct Manifest {
  int64_t row_bytes = 0;
  int64_t num_rows = 0;  // the sum of num_live
  std::vector<ManifestSegment> segments;
  std::string user;  // opaque
};

// Bytes of LIVE that a segment of this many slots has.
int64_t LiveBytes(int64_t num_slots);

std::string EncodeManifest(const Manifest& manifest);
// kCorruption, naming `path`, unless the bytes are a manifest in which every
// number is possible. *manifest is then unspecified.
Status DecodeManifest(const char* data, int64_t bytes, const std::string& path,
                      Manifest* manifest);

}  // namespace oneemb
