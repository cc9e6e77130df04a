// What has been done to a cached table since its Store was opened.
//
// A table is a value: a program may keep an old one, roll back to it, or run an
// operation on it again. Its Store has one state. So both count generations: an
// operation that changes what the Store and the device tier hold together takes
// generation g to g + 1, and is written down here.
#pragma once

#include <array>
#include <cstdint>

namespace oneemb {

enum class Operation : uint8_t {
  kStage,   // rows change their tier
  kUpdate,  // rows change
  kWrite,   // both
  kFlush,   // rows are written down
};

// How a table stands to its Store.
enum class Standing {
  kCurrent,
  kRecomputed,  // the operation has been done, on this very table
  kStale,       // the Store has moved on, or is another one
};

class History {
 public:
  uint32_t generation() const { return generation_; }

  // May `operation` be done on a table of this generation? `digest` tells apart
  // what it is done with, `run` is the execution of a compiled program that it
  // is part of.
  //
  // To stage again is fine until rows change. Within one execution, where an
  // operation may be done again for the sake of memory, it is fine as long as
  // the Store has the same rows for the keys that the table lacks: until rows
  // that changed have been moved.
  Standing Judge(uint32_t generation, Operation operation, uint64_t digest,
                 int64_t run) const {
    const uint32_t behind = generation_ - generation;
    if (behind == 0) return Standing::kCurrent;
    if (behind > kKept || operation != Operation::kStage) {
      return Standing::kStale;
    }
    const Record& done = At(generation);
    if (done.operation != operation || done.digest != digest) {
      return Standing::kStale;
    }
    bool changed = false;
    for (uint32_t g = generation + 1; g != generation_; ++g) {
      const Record& later = At(g);
      const bool update = later.operation == Operation::kUpdate;
      if (later.operation == Operation::kWrite || (changed && !update) ||
          (update && later.run != run)) {
        return Standing::kStale;
      }
      changed = changed || update;
    }
    return Standing::kRecomputed;
  }

  // May a table of this generation be read? Within one execution of a compiled
  // program, reads and writes need not come in the order of the program's text:
  // there an older table is as good as it was.
  bool MayRead(uint32_t generation, int64_t run) const {
    if (generation_ - generation > kKept) return false;
    for (uint32_t g = generation; g != generation_; ++g) {
      if (At(g).run != run) return false;
    }
    return true;
  }

  // Writes down what was done to the newest generation, in which execution.
  void Advance(Operation operation, uint64_t digest, int64_t run) {
    records_[generation_ % kKept] = {digest, run, operation};
    ++generation_;
  }

 private:
  struct Record {
    uint64_t digest = 0;
    int64_t run = 0;
    Operation operation = Operation::kStage;
  };
  static constexpr uint32_t kKept = 256;  // divides 2^32

  const Record& At(uint32_t generation) const {
    return records_[generation % kKept];
  }

  uint32_t generation_ = 0;
  std::array<Record, kKept> records_;
};

}  // namespace oneemb
