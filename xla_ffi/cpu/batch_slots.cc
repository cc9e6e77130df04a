#include "cpu/batch_slots.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <mutex>

#include "core/counters.h"
#include "cpu/checksum.h"
#include "cpu/probe.h"

namespace oneemb {
namespace {

constexpr int64_t kGrain = 4096;

// The sum of the checksums that the lookups wrote.
uint32_t WrittenChecksum(const std::vector<UpdateBatch>& batches) {
  uint32_t sum = 0;
  for (const UpdateBatch& batch : batches) {
    for (int64_t m = 0; m < batch.num_microbatches; ++m) {
      sum += batch.counts[m * kNumLookupCounts + kLookupChecksum];
    }
  }
  return sum;
}

// Adds the missing keys of up to kSize positions while their buckets are warm.
class InsertGroup {
 public:
  static constexpr size_t kSize = 16;

  InsertGroup(const FlatBatch& batch, const KeyRules& rules,
              InsertCursor* cursor, int32_t* slots)
      : batch_(batch), rules_(rules), cursor_(cursor), slots_(slots) {}
  ~InsertGroup() = default;
  InsertGroup(const InsertGroup&) = delete;
  InsertGroup& operator=(const InsertGroup&) = delete;

  void Add(int64_t position) {
    const Key key = rules_.MakeKey(batch_.Id(position), batch_.Table(position));
    const uint64_t hash = HashKey(key);
    pending_[size_] = {position, key, hash};
    const IndexView& index = cursor_->index;
    PrefetchRead(index.buckets + HomeBucket(hash, index.num_buckets));
    if (++size_ == kSize) Flush();
  }

  void Flush() {
    for (size_t i = 0; i < size_; ++i) {
      const Pending& next = pending_[i];
      const int32_t slot = FindOrInsert(cursor_, next.key, next.hash);
      slots_[next.position] = slot;
      refused_ += slot < 0 ? 1 : 0;
    }
    size_ = 0;
  }

  int64_t refused() const { return refused_; }

 private:
  struct Pending {
    int64_t position;
    Key key;
    uint64_t hash;
  };

  const FlatBatch& batch_;
  const KeyRules& rules_;
  InsertCursor* cursor_;
  int32_t* slots_;
  std::array<Pending, kSize> pending_{};
  size_t size_ = 0;
  int64_t refused_ = 0;
};

}  // namespace

FlatBatch::FlatBatch(const std::vector<UpdateBatch>& batches)
    : batches_(batches) {
  gradients_.reserve(batches.size());
  for (const UpdateBatch& batch : batches) {
    gradients_.push_back({size_, batch.gradients});
    size_ += batch.ids.size;
  }
}

const UpdateBatch& FlatBatch::BatchOf(int64_t position, int64_t* begin) const {
  size_t b = 0;
  while (b + 1 < batches_.size() && gradients_[b + 1].begin <= position) ++b;
  *begin = gradients_[b].begin;
  return batches_[b];
}

uint64_t FlatBatch::Id(int64_t position) const {
  int64_t begin = 0;
  const UpdateBatch& batch = BatchOf(position, &begin);
  return batch.ids.Id(position - begin);
}

int32_t FlatBatch::Table(int64_t position) const {
  int64_t begin = 0;
  const UpdateBatch& batch = BatchOf(position, &begin);
  return batch.ids.Table(position - begin);
}

bool FlatBatch::SawLayout(uint64_t version) const {
  for (const UpdateBatch& batch : batches_) {
    for (int64_t m = 0; m < batch.num_microbatches; ++m) {
      if (batch.layout_versions[m] != version) return false;
    }
  }
  return true;
}

bool FlatBatch::SawOneLayout() const {
  for (const UpdateBatch& batch : batches_) {
    if (batch.num_microbatches > 0) return SawLayout(batch.layout_versions[0]);
  }
  return true;
}

SlotReport FlatBatch::CopySlots(Parallel* parallel, int32_t* slots) const {
  SlotScan total;
  std::mutex mutex;
  for (size_t b = 0; b < batches_.size(); ++b) {
    const UpdateBatch& batch = batches_[b];
    const int64_t tasks = NumTasks(*parallel, batch.ids.size, kGrain * 8);
    parallel->Run(tasks, [&](int64_t task) {
      // By pieces that the cache holds: they are read twice.
      SlotScan scan;
      const Range range = TaskRange(batch.ids.size, task, tasks);
      for (int64_t i = range.begin; i < range.end; i += kGrain) {
        const Range piece{i, std::min(i + kGrain, range.end)};
        std::memcpy(
            slots + gradients_[b].begin + piece.begin,
            batch.slots + piece.begin,
            static_cast<size_t>(piece.end - piece.begin) * sizeof(int32_t));
        scan.Add(ScanSlots(batch.ids, batch.slots, piece));
      }
      const std::lock_guard<std::mutex> lock(mutex);
      total.Add(scan);
    });
  }
  return {total.checksum == WrittenChecksum(batches_), total.lowest,
          total.highest};
}

void FlatBatch::ProbeSlots(Parallel* parallel, const IndexView& index,
                           const KeyRules& rules, int32_t* slots) const {
  for (size_t b = 0; b < batches_.size(); ++b) {
    const IdsView& ids = batches_[b].ids;
    int32_t* const out = slots + gradients_[b].begin;
    const int64_t tasks = NumTasks(*parallel, ids.size, kGrain);
    parallel->Run(tasks, [&](int64_t task) {
      oneemb::ProbeSlots(index, rules, ids, TaskRange(ids.size, task, tasks),
                         out);
    });
  }
}

int64_t InsertMissing(const FlatBatch& batch, const KeyRules& rules,
                      InsertCursor* cursor, int32_t* slots) {
  InsertGroup group(batch, rules, cursor, slots);
  for (int64_t position = 0; position < batch.size(); ++position) {
    if (slots[position] == kSlotMissing) group.Add(position);
  }
  group.Flush();
  return group.refused();
}

}  // namespace oneemb
