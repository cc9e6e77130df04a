#include "store/segment_scan.h"

#include <algorithm>
#include <utility>

namespace oneemb {

int64_t Bitmap::Count() const {
  int64_t count = 0;
  for (const uint64_t word : words_) count += __builtin_popcountll(word);
  return count;
}

int64_t Bitmap::NextSet(int64_t i) const {
  while (i < size_) {
    const uint64_t rest = Word(i) >> (i % 64);
    if (rest != 0) return std::min(size_, i + __builtin_ctzll(rest));
    i = (i / 64 + 1) * 64;
  }
  return size_;
}

int64_t Bitmap::EndOfSet() const {
  for (size_t w = words_.size(); w > 0; --w) {
    const uint64_t word = words_[w - 1];
    if (word == 0) continue;
    return static_cast<int64_t>(w) * 64 - __builtin_clzll(word);
  }
  return 0;
}

void RowBatch::Clear() {
  keys.clear();
  slots.clear();
  rows.clear();
  bad_slots.clear();
  bad.clear();
}

SegmentScan::SegmentScan(std::shared_ptr<const Segment> segment, Bitmap live)
    : segment_(std::move(segment)),
      live_(std::move(live)),
      end_(live_.EndOfSet()) {}

Status SegmentScan::Next(Env* env, int64_t read_bytes, RowBatch* batch) {
  const SegmentLayout& layout = segment_->layout;
  batch->Clear();
  const int64_t first = live_.NextSet(slot_);
  if (first >= end_) return {};
  const int64_t frames = std::max<int64_t>(1, read_bytes / layout.frame_bytes);
  const int64_t begin = RoundDown(first, layout.slots_per_frame);
  const int64_t end = std::min(end_, begin + frames * layout.slots_per_frame);
  if (queue_ == nullptr) {
    ONEEMB_RETURN_IF_ERROR(buffer_.Resize(frames * layout.frame_bytes));
    ONEEMB_RETURN_IF_ERROR(IoQueue::Open(env, 1, &queue_));
  }
  Transfer transfer;
  transfer.file = segment_->file.get();
  transfer.offset = layout.SlotOffset(begin);
  transfer.data = buffer_.data();
  transfer.bytes = layout.DataEnd(end) - transfer.offset;
  ONEEMB_RETURN_IF_ERROR(queue_->Run(&transfer));
  Decode(first, end, transfer.offset, batch);
  slot_ = end;
  return {};
}

void SegmentScan::Decode(int64_t begin_slot, int64_t end_slot, int64_t offset,
                         RowBatch* batch) const {
  const SegmentLayout& layout = segment_->layout;
  for (int64_t slot = live_.NextSet(begin_slot); slot < end_slot;
       slot = live_.NextSet(slot + 1)) {
    const char* const record =
        buffer_.data() + (layout.SlotOffset(slot) - offset);
    Key key{};
    const char* const row =
        DecodeRecord(layout, segment_->salt, slot, record, &key);
    if (row == nullptr) {
      batch->bad_slots.push_back(slot);
      batch->bad.push_back(DamagedRow(*segment_, slot, nullptr));
      continue;
    }
    batch->keys.push_back(key);
    batch->slots.push_back(slot);
    batch->rows.insert(batch->rows.end(), row, row + layout.row_bytes);
  }
}

Status DamagedRow(const Segment& segment, int64_t slot, const Key* key) {
  const std::string whose = key == nullptr ? "a row" : ToString(*key);
  return {StatusKind::kCorruption,
          segment.file->path() + ": the record of " + whose + " in slot " +
              std::to_string(slot) + " (byte " +
              std::to_string(segment.layout.SlotOffset(slot)) +
              ") is damaged; its checksum or key is wrong"};
}

}  // namespace oneemb
