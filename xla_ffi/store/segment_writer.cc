#include "store/segment_writer.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "store/crc32c.h"
#include "store/crew.h"
#include "store/files.h"

namespace oneemb {
namespace {

// Room for a header and whole frames.
int64_t BufferBytes(const SegmentWriterOptions& options) {
  const int64_t frame = options.layout.frame_bytes;
  return kBlockBytes + std::max(frame, RoundDown(options.write_bytes, frame));
}

}  // namespace

SegmentWriter::SegmentWriter(SegmentWriterOptions options)
    : options_(std::move(options)) {}

int64_t SegmentWriter::MemoryBytes(const SegmentWriterOptions& options) {
  constexpr int64_t kKeyBytes = sizeof(uint64_t) + sizeof(uint16_t);
  return int64_t{options.write_depth} * BufferBytes(options) +
         options.slots_per_segment * kKeyBytes;
}

// Memory and queue, at the first use.
Status SegmentWriter::Prepare() {
  if (queue_ != nullptr) return {};
  capacity_ = BufferBytes(options_);
  std::vector<Buffer> buffers(static_cast<size_t>(options_.write_depth));
  for (Buffer& buffer : buffers) {
    ONEEMB_RETURN_IF_ERROR(buffer.memory.Resize(capacity_));
  }
  const auto slots = static_cast<size_t>(options_.slots_per_segment);
  ids_.reserve(slots);
  tables_.reserve(slots);
  if (options_.memory_bytes != nullptr) {
    // All is touched: a long run takes no more than its first steps did.
    for (Buffer& buffer : buffers) {
      std::memset(buffer.memory.data(), 0, static_cast<size_t>(capacity_));
    }
    ids_.resize(slots);
    tables_.resize(slots);
  }
  ONEEMB_RETURN_IF_ERROR(
      IoQueue::Open(options_.env, options_.write_depth, &queue_));
  buffers_ = std::move(buffers);
  if (options_.memory_bytes != nullptr) {
    *options_.memory_bytes += MemoryBytes(options_);
  }
  return {};
}

Status SegmentWriter::OpenNext() {
  ONEEMB_RETURN_IF_ERROR(Prepare());
  auto fresh = std::make_shared<Segment>();
  fresh->layout = options_.layout;
  fresh->number = options_.next_number->fetch_add(1);
  fresh->salt = options_.env->Random();
  fresh->name = SegmentName(fresh->number, fresh->salt);
  const std::string path = JoinPath(options_.folder, fresh->name);
  const int64_t slots = options_.slots_per_segment;
  closed_.reserve(closed_.size() + 1);  // so that CloseWith needs no memory
  ONEEMB_RETURN_IF_ERROR(options_.env->Open(path, OpenMode::kCreate,
                                            Caching::kDirect, &fresh->file));
  // A full disk shows here, before any row is taken.
  Status allocated = fresh->file->Allocate(SegmentBytes(fresh->layout, slots));
  if (!allocated.ok()) {
    (void)options_.env->Remove(path);  // gives back what was allocated
    return allocated;
  }
  EncodeHeader(fresh->layout, fresh->number, fresh->salt, FreeBuffer());
  direct_io_ = fresh->file->direct();
  fill_ = kBlockBytes;
  offset_ = 0;
  next_slot_ = 0;
  ids_.clear();
  tables_.clear();
  segment_ = std::move(fresh);
  return {};
}

void SegmentWriter::FinishOne() {
  Transfer* const transfer = queue_->Finish();
  buffers_[static_cast<size_t>(transfer->user)].in_flight = false;
  if (write_status_.ok()) write_status_ = std::move(transfer->status);
}

// Hands the current buffer to the disk and turns to the next.
void SegmentWriter::StartWrite() {
  if (fill_ == 0) return;
  Buffer& buffer = buffers_[current_];
  buffer.transfer.file = segment_->file.get();
  buffer.transfer.write = true;
  buffer.transfer.offset = offset_;
  buffer.transfer.data = buffer.memory.data();
  buffer.transfer.bytes = fill_;
  buffer.transfer.user = static_cast<int64_t>(current_);
  buffer.in_flight = true;
  queue_->Start(&buffer.transfer);
  bytes_written_ += fill_;
  offset_ += fill_;
  fill_ = 0;
  current_ = (current_ + 1) % buffers_.size();
}

// The buffer that is being filled, once it is free.
char* SegmentWriter::FreeBuffer() {
  while (buffers_[current_].in_flight) FinishOne();
  return buffers_[current_].memory.data();
}

// Waits until all that was started is written.
Status SegmentWriter::Drain() {
  while (queue_->in_flight() > 0) FinishOne();
  return std::exchange(write_status_, {});
}

// Encodes rows from the next slot on, the first of a frame, into the current
// buffer, which has room for them, and ends the last frame with slots that hold
// no row. Several threads, where there are: checksums take time.
void SegmentWriter::PutRecords(KeySpan keys, const char* rows) {
  constexpr int64_t kGrainBytes = int64_t{128} << 10;
  const SegmentLayout& layout = options_.layout;
  const int64_t frames =
      (keys.size + layout.slots_per_frame - 1) / layout.slots_per_frame;
  char* const begin = FreeBuffer() + fill_;
  Crew::Get()->ForRanges(
      frames, std::max<int64_t>(1, kGrainBytes / layout.frame_bytes),
      [&](int64_t first, int64_t last) {
        for (int64_t f = first; f < last; ++f) {
          PutFrame(keys, rows, f, begin + f * layout.frame_bytes);
        }
      });
  for (int64_t i = 0; i < keys.size; ++i) {
    ids_.push_back(keys[i].id);
    tables_.push_back(keys[i].table);
  }
  next_slot_ += frames * layout.slots_per_frame;
  ids_.resize(static_cast<size_t>(next_slot_));
  tables_.resize(static_cast<size_t>(next_slot_));
  fill_ += frames * layout.frame_bytes;
}

// Frame `f` of the rows that PutRecords was given; zeros after the last row.
void SegmentWriter::PutFrame(KeySpan keys, const char* rows, int64_t f,
                             char* frame) const {
  const SegmentLayout& layout = options_.layout;
  const int64_t first = f * layout.slots_per_frame;
  const int64_t last = std::min(keys.size, first + layout.slots_per_frame);
  char* out = frame;
  for (int64_t i = first; i < last; ++i, out += layout.pitch) {
    EncodeRecord(layout, segment_->salt, next_slot_ + i, keys[i],
                 rows + i * layout.row_bytes, out);
  }
  std::memset(out, 0, static_cast<size_t>(frame + layout.frame_bytes - out));
}

// Appends what fits into the open segment; all of it is on its way then.
void SegmentWriter::StartRun(KeySpan keys, const char* rows,
                             const Meanwhile& meanwhile, int64_t* taken) {
  const SegmentLayout& layout = options_.layout;
  *taken = std::min(keys.size, options_.slots_per_segment - next_slot_);
  for (int64_t done = 0; done < *taken;) {
    const int64_t room =
        (capacity_ - fill_) / layout.frame_bytes * layout.slots_per_frame;
    const int64_t count = std::min(room, *taken - done);
    PutRecords(keys.Slice(done, count), rows + done * layout.row_bytes);
    done += count;
    if (done == *taken) break;
    StartWrite();
    (void)meanwhile();
  }
  StartWrite();
}

Status SegmentWriter::Append(KeySpan keys, const char* rows,
                             std::vector<SlotRun>* runs,
                             const Meanwhile& meanwhile) {
  runs->clear();
  for (int64_t done = 0; done < keys.size;) {
    if (segment_ == nullptr) ONEEMB_RETURN_IF_ERROR(OpenNext());
    const int64_t first = next_slot_;
    int64_t taken = 0;
    StartRun(keys.Slice(done, keys.size - done),
             rows + done * options_.layout.row_bytes, meanwhile, &taken);
    const bool last = done + taken == keys.size;
    while (meanwhile() && last) {
    }
    const Status written = Drain();
    if (!written.ok()) {
      CloseWith(written);
      return written;
    }
    runs->push_back({segment_, first, taken});
    done += taken;
    if (next_slot_ == options_.slots_per_segment) CloseWith(Seal());
  }
  return {};
}

// Puts bytes behind those in the current buffer, and starts a write each time
// that it is full.
void SegmentWriter::PutBytes(const char* data, int64_t bytes) {
  while (bytes > 0) {
    char* const begin = FreeBuffer() + fill_;
    const int64_t count = std::min(bytes, capacity_ - fill_);
    std::memcpy(begin, data, static_cast<size_t>(count));
    fill_ += count;
    data += count;
    bytes -= count;
    if (fill_ == capacity_) StartWrite();
  }
}

// REQUIRES: drained.
Status SegmentWriter::WriteKeysAndTrailer() {
  const auto* const ids = reinterpret_cast<const char*>(ids_.data());
  const auto* const tables = reinterpret_cast<const char*>(tables_.data());
  const int64_t id_bytes = next_slot_ * int64_t{sizeof(uint64_t)};
  const int64_t table_bytes = next_slot_ * int64_t{sizeof(uint16_t)};
  std::array<char, kBlockBytes> block{};
  const int64_t padding = KeysBytes(next_slot_) - id_bytes - table_bytes;
  uint32_t crc = Crc32c(ids, id_bytes);
  crc = Crc32c(tables, table_bytes, crc);
  crc = Crc32c(block.data(), padding, crc);
  PutBytes(ids, id_bytes);
  PutBytes(tables, table_bytes);
  PutBytes(block.data(), padding);
  EncodeTrailer(segment_->number, segment_->salt, next_slot_, crc,
                block.data());
  PutBytes(block.data(), kBlockBytes);
  StartWrite();
  return Drain();
}

// REQUIRES: drained.
Status SegmentWriter::Seal() {
  ONEEMB_RETURN_IF_ERROR(WriteKeysAndTrailer());
  File* const file = segment_->file.get();
  ONEEMB_RETURN_IF_ERROR(
      file->Truncate(SegmentBytes(options_.layout, next_slot_)));
  ONEEMB_RETURN_IF_ERROR(file->Sync());
  return file->SetReadOnly();
}

void SegmentWriter::CloseWith(Status sealed) {
  closed_.push_back({std::move(segment_), next_slot_, std::move(sealed)});
  Abandon();
}

void SegmentWriter::Close() {
  if (segment_ != nullptr) CloseWith(Seal());
}

void SegmentWriter::Abandon() {
  segment_ = nullptr;
  fill_ = 0;
}

}  // namespace oneemb
