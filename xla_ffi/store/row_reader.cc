#include "store/row_reader.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "store/segment_scan.h"

namespace oneemb {
namespace {

// Rows this near to each other come by one read: skipping costs less than a
// second request.
constexpr int64_t kMaxGap = int64_t{16} << 10;
constexpr int64_t kMaxRead = int64_t{32} << 10;
// Of all reads in flight, whose number it bounds where rows are large.
constexpr int64_t kMostBytes = int64_t{16} << 20;

// The largest read: kMaxRead, or one row that straddles blocks.
int64_t SlotBytes(int64_t row_bytes) {
  const int64_t record = static_cast<int64_t>(sizeof(RecordHeader)) + row_bytes;
  return std::max(kMaxRead, RoundUp(record, kBlockBytes) + kBlockBytes);
}

int64_t NumSlots(int depth, int64_t row_bytes) {
  return std::clamp<int64_t>(kMostBytes / SlotBytes(row_bytes), 1, depth);
}

}  // namespace

struct RowReader::Batch {
  const std::vector<RowRead>& reads;
  KeySpan keys;
  char* rows;
  uint8_t* found;
  Status* first_failure;
};

RowReader::RowReader(int64_t num_slots, int64_t block_bytes)
    : block_bytes_(block_bytes), slots_(static_cast<size_t>(num_slots)) {}

Status RowReader::Open(Env* env, int depth, int64_t block_bytes,
                       int64_t row_bytes, std::unique_ptr<RowReader>* reader) {
  const int64_t num_slots = NumSlots(depth, row_bytes);
  const int64_t slot_bytes = SlotBytes(row_bytes);
  std::unique_ptr<RowReader> fresh(new RowReader(num_slots, block_bytes));
  ONEEMB_RETURN_IF_ERROR(
      IoQueue::Open(env, static_cast<int>(num_slots), &fresh->queue_));
  ONEEMB_RETURN_IF_ERROR(IoQueue::Open(env, 1, &fresh->again_));
  ONEEMB_RETURN_IF_ERROR(fresh->again_memory_.Resize(slot_bytes));
  fresh->again_slot_.data = fresh->again_memory_.data();
  ONEEMB_RETURN_IF_ERROR(fresh->memory_.Resize(num_slots * slot_bytes));
  // Most reads fill a part of a slot. Touched as they go, the rest would make a
  // long run's memory grow for as long as it lasts.
  char* next = fresh->memory_.data();
  std::memset(next, 0, static_cast<size_t>(fresh->memory_.size()));
  for (Slot& slot : fresh->slots_) {
    slot.data = next;
    next += slot_bytes;
    fresh->free_.push_back(&slot);
  }
  *reader = std::move(fresh);
  return {};
}

int64_t RowReader::MemoryBytes(int depth, int64_t row_bytes) {
  const int64_t slot_bytes = SlotBytes(row_bytes);
  const int64_t all = NumSlots(depth, row_bytes) * slot_bytes;
  return HeapBuffers::Rounded(all) + HeapBuffers::Rounded(slot_bytes);
}

// Fills in the transfer that brings the rows from `begin` on; returns where
// the rest begins.
size_t RowReader::Plan(const Batch& batch, size_t begin, Slot* slot) const {
  const Segment& segment = *batch.reads[begin].segment;
  const SegmentLayout& layout = segment.layout;
  const int64_t used =
      static_cast<int64_t>(sizeof(RecordHeader)) + layout.row_bytes;
  const int64_t first =
      RoundDown(layout.SlotOffset(batch.reads[begin].slot), block_bytes_);
  int64_t last = first;
  size_t end = begin;
  for (; end < batch.reads.size(); ++end) {
    const RowRead& read = batch.reads[end];
    if (read.segment != &segment) break;
    const int64_t offset = layout.SlotOffset(read.slot);
    const int64_t until = RoundUp(offset + used, block_bytes_);
    const bool near = offset - last <= kMaxGap && until - first <= kMaxRead;
    if (end > begin && !near) break;
    last = until;
  }
  slot->begin = begin;
  slot->end = end;
  slot->transfer.file = segment.file.get();
  slot->transfer.offset = first;
  slot->transfer.data = slot->data;
  slot->transfer.bytes = last - first;
  return end;
}

Status RowReader::Read(const std::vector<RowRead>& reads, KeySpan keys,
                       char* rows, uint8_t* found) {
  Status first_failure;
  const Batch batch{reads, keys, rows, found, &first_failure};
  for (size_t next = 0; next < reads.size();) {
    if (free_.empty()) Finish(batch);
    Slot* const slot = free_.back();
    free_.pop_back();
    next = Plan(batch, next, slot);
    slot->transfer.user = slot - slots_.data();
    queue_->Start(&slot->transfer);
  }
  while (queue_->in_flight() > 0) Finish(batch);
  return first_failure;
}

void RowReader::Finish(const Batch& batch) {
  const Transfer* const transfer = queue_->Finish();
  Slot* const slot = &slots_[static_cast<size_t>(transfer->user)];
  Deliver(batch, slot);
  free_.push_back(slot);
}

void RowReader::Deliver(const Batch& batch, Slot* slot) {
  for (size_t i = slot->begin; i < slot->end; ++i) {
    const RowRead& read = batch.reads[i];
    Status status = slot->transfer.status;
    if (status.ok()) status = Unpack(batch, *slot, read);
    // A second attempt, for this row alone: the disk may have had a moment of
    // weakness, or the trouble may lie in another row of the same read.
    if (!status.ok()) status = ReadAgain(batch, read);
    batch.found[read.item] = status.ok() ? kRowFound : kRowFailed;
    if (!status.ok() && batch.first_failure->ok()) {
      *batch.first_failure = std::move(status);
    }
  }
}

Status RowReader::Unpack(const Batch& batch, const Slot& slot,
                         const RowRead& read) const {
  const Segment& segment = *read.segment;
  const SegmentLayout& layout = segment.layout;
  const Key wanted = batch.keys[read.item];
  const char* const record =
      slot.data + (layout.SlotOffset(read.slot) - slot.transfer.offset);
  Key key{};
  const char* const row =
      DecodeRecord(layout, segment.salt, read.slot, record, &key);
  if (row == nullptr || key != wanted) {
    return DamagedRow(segment, read.slot, &wanted);
  }
  std::memcpy(batch.rows + read.item * layout.row_bytes, row,
              static_cast<size_t>(layout.row_bytes));
  return {};
}

Status RowReader::ReadAgain(const Batch& batch, const RowRead& read) {
  const std::vector<RowRead> alone{read};
  const Batch one{alone, batch.keys, batch.rows, batch.found,
                  batch.first_failure};
  (void)Plan(one, 0, &again_slot_);
  Status status = again_->Run(&again_slot_.transfer);
  if (status.ok()) return Unpack(one, again_slot_, read);
  return {
      status.kind(),
      ToString(batch.keys[read.item]) + " cannot be read: " + status.message(),
      status.error()};
}

}  // namespace oneemb
