// Reads rows in the order in which they lie: for iteration, compaction,
// loading and verification.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "store/aligned_buffer.h"
#include "store/io_queue.h"
#include "store/segment.h"
#include "store/status.h"

namespace oneemb {

// One bit a slot.
class Bitmap {
 public:
  Bitmap() = default;
  explicit Bitmap(int64_t size)
      : size_(size), words_(static_cast<size_t>((size + 63) / 64)) {}

  int64_t size() const { return size_; }
  bool Get(int64_t i) const { return (Word(i) >> (i % 64) & 1) != 0; }
  void Set(int64_t i) { Word(i) |= uint64_t{1} << (i % 64); }
  void Clear(int64_t i) { Word(i) &= ~(uint64_t{1} << (i % 64)); }
  int64_t Count() const;
  // The first set bit at or after i, or size().
  int64_t NextSet(int64_t i) const;
  // One past the last set bit, or 0.
  int64_t EndOfSet() const;

  std::vector<uint64_t>& words() { return words_; }
  const std::vector<uint64_t>& words() const { return words_; }

 private:
  uint64_t& Word(int64_t i) { return words_[static_cast<size_t>(i / 64)]; }
  uint64_t Word(int64_t i) const { return words_[static_cast<size_t>(i / 64)]; }

  int64_t size_ = 0;
  std::vector<uint64_t> words_;
};

// Rows that were read together.
struct RowBatch {
  std::vector<Key> keys;
  std::vector<int64_t> slots;
  std::vector<char> rows;
  // Live slots whose record is damaged, with what is wrong with each.
  std::vector<int64_t> bad_slots;
  std::vector<Status> bad;

  void Clear();
  // Nothing good and nothing bad: the end of what is read.
  bool empty() const { return keys.empty() && bad.empty(); }
};

// Rows in chunks. For one thread at a time.
class RowSource {
 public:
  virtual ~RowSource() = default;
  RowSource() = default;
  RowSource(const RowSource&) = delete;
  RowSource& operator=(const RowSource&) = delete;

  // The next rows, in no order; an empty batch is the end.
  virtual Status Next(RowBatch* batch) = 0;
};

// Walks over the live slots of one segment. For one thread at a time.
class SegmentScan {
 public:
  // `live` is copied: the rows that lived at this moment are what is read.
  SegmentScan(std::shared_ptr<const Segment> segment, Bitmap live);

  // Reads on, about read_bytes of file at a time; an empty batch is the end. An
  // error means that the file cannot be read; damaged rows are reported in the
  // batch.
  Status Next(Env* env, int64_t read_bytes, RowBatch* batch);

 private:
  void Decode(int64_t begin_slot, int64_t end_slot, int64_t offset,
              RowBatch* batch) const;

  const std::shared_ptr<const Segment> segment_;
  const Bitmap live_;
  int64_t end_;  // no slot from here on is live
  int64_t slot_ = 0;
  std::unique_ptr<IoQueue> queue_;
  AlignedBuffer buffer_;
};

// "segment …, slot 7 (byte 4096): the record of id 1 of table 2 is damaged".
Status DamagedRow(const Segment& segment, int64_t slot, const Key* key);

}  // namespace oneemb
