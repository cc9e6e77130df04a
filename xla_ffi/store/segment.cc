#include "store/segment.h"

#include <algorithm>
#include <cstring>

#include "store/aligned_buffer.h"
#include "store/crc32c.h"
#include "store/files.h"
#include "store/io_queue.h"

namespace oneemb {
namespace {

// No format has a file shorter than header, one frame, keys and trailer.
constexpr int64_t kSmallestSegment = 4 * kBlockBytes;
constexpr int64_t kReadBytes = int64_t{1} << 20;

Status Corrupt(const std::string& path, const std::string& fact) {
  return {StatusKind::kCorruption, path + ": " + fact};
}

Status ReadBytes(IoQueue* queue, File* file, int64_t offset, char* data,
                 int64_t bytes) {
  for (int64_t done = 0; done < bytes; done += kReadBytes) {
    Transfer transfer;
    transfer.file = file;
    transfer.offset = offset + done;
    transfer.data = data + done;
    transfer.bytes = std::min(kReadBytes, bytes - done);
    ONEEMB_RETURN_IF_ERROR(queue->Run(&transfer));
  }
  return {};
}

Status CheckTrailer(const SegmentHeader& header, const SegmentTrailer& trailer,
                    const std::string& path, int64_t file_bytes) {
  if (trailer.number != header.number || trailer.salt != header.salt) {
    return Corrupt(path, "header and trailer are of two different segments");
  }
  const int64_t expected = SegmentBytes(
      LayoutFor(header.row_bytes), static_cast<int64_t>(trailer.num_slots));
  if (file_bytes != expected) {
    return Corrupt(path, std::to_string(file_bytes) + " bytes instead of " +
                             std::to_string(expected));
  }
  return {};
}

}  // namespace

Status OpenSegment(Env* env, const std::string& folder, const std::string& name,
                   std::shared_ptr<const Segment>* segment,
                   SegmentTrailer* trailer) {
  auto fresh = std::make_shared<Segment>();
  const std::string path = JoinPath(folder, name);
  std::unique_ptr<IoQueue> queue;
  AlignedBuffer block;
  int64_t bytes = 0;
  SegmentHeader header{};
  ONEEMB_RETURN_IF_ERROR(
      env->Open(path, OpenMode::kRead, Caching::kDirect, &fresh->file));
  ONEEMB_RETURN_IF_ERROR(fresh->file->Size(&bytes));
  if (bytes < kSmallestSegment || bytes % kBlockBytes != 0) {
    return Corrupt(path, std::to_string(bytes) + " bytes: cut off");
  }
  ONEEMB_RETURN_IF_ERROR(IoQueue::Open(env, 1, &queue));
  ONEEMB_RETURN_IF_ERROR(block.Resize(kBlockBytes));
  File* const file = fresh->file.get();
  ONEEMB_RETURN_IF_ERROR(
      ReadBytes(queue.get(), file, 0, block.data(), kBlockBytes));
  ONEEMB_RETURN_IF_ERROR(DecodeHeader(block.data(), path, &header));
  ONEEMB_RETURN_IF_ERROR(ReadBytes(queue.get(), file, bytes - kBlockBytes,
                                   block.data(), kBlockBytes));
  ONEEMB_RETURN_IF_ERROR(DecodeTrailer(block.data(), path, trailer));
  ONEEMB_RETURN_IF_ERROR(CheckTrailer(header, *trailer, path, bytes));
  fresh->layout = LayoutFor(header.row_bytes);
  fresh->number = header.number;
  fresh->salt = header.salt;
  fresh->name = name;
  *segment = std::move(fresh);
  return {};
}

Status ReadSegmentKeys(Env* env, const Segment& segment,
                       const SegmentTrailer& trailer, SegmentKeys* keys) {
  const auto slots = static_cast<int64_t>(trailer.num_slots);
  const int64_t bytes = KeysBytes(slots);
  std::unique_ptr<IoQueue> queue;
  AlignedBuffer data;
  ONEEMB_RETURN_IF_ERROR(IoQueue::Open(env, 1, &queue));
  ONEEMB_RETURN_IF_ERROR(data.Resize(bytes));
  ONEEMB_RETURN_IF_ERROR(ReadBytes(queue.get(), segment.file.get(),
                                   segment.layout.DataEnd(slots), data.data(),
                                   bytes));
  if (Crc32c(data.data(), bytes) != trailer.keys_crc) {
    return Corrupt(segment.file->path(), "the checksum of its keys is wrong");
  }
  keys->ids.resize(trailer.num_slots);
  keys->tables.resize(trailer.num_slots);
  const size_t id_bytes = trailer.num_slots * sizeof(uint64_t);
  std::memcpy(keys->ids.data(), data.data(), id_bytes);
  std::memcpy(keys->tables.data(), data.data() + id_bytes,
              trailer.num_slots * sizeof(uint16_t));
  return {};
}

}  // namespace oneemb
