// The input of libFuzzer as changes of a snapshot's files. A failed check is an
// exception that nobody catches, so it ends the fuzzer as a crash does.
//
// The first byte tells which checksums are made right again. Then changes
// follow, each
//   file, kind, place (2 bytes), length (1 byte), that many bytes of data
// and what an input has too little of is zeros.
#include <algorithm>

#include "snapshot_fuzzer.h"

namespace oneemb::fuzz {
namespace {

// An input, from its first byte to its last.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : next_(data), left_(size) {}

  bool empty() const { return left_ == 0; }
  size_t left() const { return left_; }
  uint8_t Byte() {
    if (empty()) return 0;
    --left_;
    return *next_++;
  }
  Bytes Take(size_t count) {
    count = std::min(count, left_);
    Bytes bytes(next_, next_ + count);
    next_ += count;
    left_ -= count;
    return bytes;
  }

 private:
  const uint8_t* next_;
  size_t left_;
};

enum class Change : uint8_t { kOverwrite, kInsert, kErase, kCut, kReplace };
constexpr uint8_t kNumChanges = 5;

// The kind's upper bit counts the place from the end, where trailers are.
void ChangeOnce(Input* input, Bytes* file) {
  const uint8_t kind = input->Byte();
  const size_t distance = input->Byte() + size_t{256} * input->Byte();
  const size_t place = std::min(distance, file->size());
  const size_t at = kind < 128 ? place : file->size() - place;
  const size_t length = input->Byte();
  const auto here = file->begin() + static_cast<int64_t>(at);
  const size_t count = std::min(length, file->size() - at);
  switch (static_cast<Change>(kind % 128 % kNumChanges)) {
    case Change::kOverwrite: {
      const Bytes data = input->Take(count);
      std::copy(data.begin(), data.end(), here);
      break;
    }
    case Change::kInsert: {
      const Bytes data = input->Take(length);
      file->insert(here, data.begin(), data.end());
      break;
    }
    case Change::kErase:
      file->erase(here, here + static_cast<int64_t>(count));
      break;
    case Change::kCut:
      file->resize(at);
      break;
    case Change::kReplace:
      *file = input->Take(input->left());
      break;
  }
}

}  // namespace
}  // namespace oneemb::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace oneemb::fuzz;
  static SnapshotFuzzer fuzzer;
  constexpr Repair kRepairs[] = {Repair::kAll, Repair::kAllButLive,
                                 Repair::kNone};
  Input input(data, size);
  const Repair repair = kRepairs[input.Byte() % std::size(kRepairs)];
  Files files = fuzzer.good();
  while (!input.empty()) {
    const std::vector<std::string>& paths = fuzzer.paths();
    ChangeOnce(&input, &files[paths[input.Byte() % paths.size()]]);
  }
  RepairFiles(repair, &files);
  fuzzer.Loads(files);
  return 0;
}
