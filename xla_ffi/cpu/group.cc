#include "cpu/group.h"

#include <vector>

namespace oneemb {
namespace {

// 2,048 counters and 2,048 open lines stay inside the second-level cache.
constexpr int kMostDigitBits = 11;
constexpr int64_t kGrain = 16384;

int BitWidth(uint64_t x) { return x == 0 ? 0 : 64 - __builtin_clzll(x); }

// A stable counting sort by one digit. Source yields the entries of a range:
// source(range, visit) calls visit(entry) in order.
class DigitPass {
 public:
  DigitPass(Parallel* parallel, int64_t n, int shift, int bits)
      : parallel_(parallel),
        n_(n),
        shift_(shift),
        mask_((uint64_t{1} << bits) - 1),
        digits_(int64_t{1} << bits),
        tasks_(NumTasks(*parallel, n, kGrain)),
        offsets_(static_cast<size_t>(digits_ * tasks_)) {}

  // Returns the number of entries written to `out`.
  template <class Source>
  int64_t Run(const Source& source, SlotPosition* out) {
    parallel_->Run(tasks_, [&](int64_t task) {
      int64_t* const counts = OffsetsOf(task);
      source(TaskRange(n_, task, tasks_),
             [&](SlotPosition entry) { ++counts[Digit(entry)]; });
    });
    const int64_t total = CountsToOffsets();
    parallel_->Run(tasks_, [&](int64_t task) {
      int64_t* const offsets = OffsetsOf(task);
      source(TaskRange(n_, task, tasks_),
             [&](SlotPosition entry) { out[offsets[Digit(entry)]++] = entry; });
    });
    return total;
  }

 private:
  int64_t* OffsetsOf(int64_t task) { return offsets_.data() + task * digits_; }

  int64_t Digit(SlotPosition entry) const {
    return static_cast<int64_t>((entry >> (32 + shift_)) & mask_);
  }

  // Digit by digit, and inside a digit task by task: that keeps it stable.
  int64_t CountsToOffsets() {
    int64_t next = 0;
    for (int64_t d = 0; d < digits_; ++d) {
      for (int64_t task = 0; task < tasks_; ++task) {
        int64_t* const cell = OffsetsOf(task) + d;
        const int64_t count = *cell;
        *cell = next;
        next += count;
      }
    }
    return next;
  }

  Parallel* parallel_;
  int64_t n_;
  int shift_;
  uint64_t mask_;
  int64_t digits_;
  int64_t tasks_;
  std::vector<int64_t> offsets_;
};

}  // namespace

SlotPosition* SortBySlot(Parallel* parallel, const int32_t* slots, int64_t n,
                         int64_t num_slots, SlotPosition* a, SlotPosition* b,
                         int64_t* count) {
  const int bits =
      num_slots < 2 ? 1 : BitWidth(static_cast<uint64_t>(num_slots - 1));
  const int passes = (bits + kMostDigitBits - 1) / kMostDigitBits;
  const int digit_bits = (bits + passes - 1) / passes;
  const auto from_slots = [slots](Range range, const auto& visit) {
    for (int64_t i = range.begin; i < range.end; ++i) {
      if (slots[i] < 0) continue;
      visit((static_cast<uint64_t>(slots[i]) << 32) | static_cast<uint64_t>(i));
    }
  };
  *count = DigitPass(parallel, n, 0, digit_bits).Run(from_slots, a);
  for (int pass = 1; pass < passes; ++pass) {
    const auto from_entries = [a](Range range, const auto& visit) {
      for (int64_t i = range.begin; i < range.end; ++i) visit(a[i]);
    };
    DigitPass(parallel, *count, pass * digit_bits, digit_bits)
        .Run(from_entries, b);
    SlotPosition* const sorted = b;
    b = a;
    a = sorted;
  }
  return a;
}

Range AlignToGroups(const SlotPosition* entries, int64_t count, Range range) {
  const auto next_group = [&](int64_t i) {
    if (i <= 0 || i >= count) return i;
    const int32_t slot = SlotOf(entries[i - 1]);
    while (i < count && SlotOf(entries[i]) == slot) ++i;
    return i;
  };
  return {next_group(range.begin), next_group(range.end)};
}

}  // namespace oneemb
