// An open segment, and how to open a sealed one.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "store/env.h"
#include "store/segment_format.h"
#include "store/status.h"

namespace oneemb {

// Constant once made, so any thread may read from it. Readers hold it by
// shared_ptr: a segment whose name is gone stays readable until they let go.
struct Segment {
  SegmentLayout layout;
  uint64_t number;
  uint64_t salt;
  std::string name;  // within its folder
  std::unique_ptr<File> file;
};

// What a sealed segment says at its end.
struct SegmentKeys {
  std::vector<uint64_t> ids;  // of each slot, written or not
  std::vector<uint16_t> tables;

  Key At(int64_t slot) const {
    return {ids[static_cast<size_t>(slot)], tables[static_cast<size_t>(slot)]};
  }
};

// Opens a sealed segment and checks header, trailer and size against each
// other. On an error *segment is unchanged.
Status OpenSegment(Env* env, const std::string& folder, const std::string& name,
                   std::shared_ptr<const Segment>* segment,
                   SegmentTrailer* trailer);

// Reads which key each slot holds. kCorruption when the checksum is wrong.
Status ReadSegmentKeys(Env* env, const Segment& segment,
                       const SegmentTrailer& trailer, SegmentKeys* keys);

}  // namespace oneemb
