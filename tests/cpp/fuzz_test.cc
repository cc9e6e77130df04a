// Files of a snapshot changed at random, with their checksums made right again,
// else every input would end at the first of them. Whatever the bytes, nothing
// crashes, and a load that fails leaves the store as it was.
//
// ONEEMB_FUZZ_RUNS=1000000 runs for longer; ONEEMB_FUZZ_SEED begins elsewhere.
#include <algorithm>

#include "setting.h"
#include "snapshot_fuzzer.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace oneemb::fuzz {
namespace {

// Values at which sizes and counts go wrong.
uint64_t Interesting(std::mt19937_64* random) {
  constexpr uint64_t kValues[] = {0,
                                  1,
                                  2,
                                  63,
                                  64,
                                  4095,
                                  4096,
                                  65535,
                                  65537,
                                  uint64_t{1} << 22,
                                  (uint64_t{1} << 22) + 1,
                                  uint64_t{1} << 31,
                                  uint64_t{1} << 32,
                                  uint64_t{1} << 62,
                                  uint64_t{1} << 63,
                                  ~uint64_t{0}};
  return kValues[(*random)() % std::size(kValues)] + (*random)() % 3 - 1;
}

void MutateOnce(Bytes* bytes, std::mt19937_64* random) {
  if (bytes->empty()) bytes->push_back('\0');
  // Heads and tails hold all the structure.
  const size_t size = bytes->size();
  const size_t near = std::min<size_t>(size, 64);
  const size_t at[] = {
      (*random)() % size, (*random)() % near, size - 1 - (*random)() % near,
      size >= kBlockBytes ? size - kBlockBytes + (*random)() % near : 0};
  const size_t place = at[std::max<uint64_t>((*random)() % 8, 4) - 4];
  const auto here = bytes->begin() + static_cast<int64_t>(place);
  switch ((*random)() % 20) {
    case 0:
      *here = static_cast<char>(*here ^ (1 << ((*random)() % 8)));
      break;
    case 1:
      *here = static_cast<char>((*random)());
      break;
    case 2:
      Put(bytes, place / 4 * 4, static_cast<uint32_t>(Interesting(random)));
      break;
    case 3:
      Put(bytes, place / 8 * 8, Interesting(random));
      break;
    case 4:
      bytes->resize(place);
      break;
    case 5:
      bytes->insert(here, (*random)() % 5000, static_cast<char>((*random)()));
      break;
    case 6: {
      const size_t count = std::min<size_t>((*random)() % 5000, size - place);
      bytes->erase(here, here + static_cast<int64_t>(count));
      break;
    }
    default:  // anywhere, and the size stays
      for (uint64_t n = 1 + (*random)() % 3; n > 0; --n) {
        (*bytes)[(*random)() % size] = static_cast<char>((*random)());
      }
  }
}

// One changed snapshot.
Files ChangedFiles(const SnapshotFuzzer& fuzzer, uint64_t seed) {
  std::mt19937_64 random(seed);
  const std::vector<std::string>& paths = fuzzer.paths();
  Files files = fuzzer.good();
  for (uint64_t files_left = 1 + random() % 2; files_left > 0; --files_left) {
    Bytes* const file = &files[paths[random() % paths.size()]];
    for (uint64_t n = 1 + random() % 3; n > 0; --n) MutateOnce(file, &random);
  }
  if (random() % 8 != 0) {
    RepairFiles(random() % 4 != 0 ? Repair::kAll : Repair::kAllButLive, &files);
  }
  return files;
}

TEST(ChangedSnapshotsDoNoHarm) {
  const uint64_t runs = Setting("ONEEMB_FUZZ_RUNS", 4000);
  const uint64_t seed = Setting("ONEEMB_FUZZ_SEED", 1);
  SnapshotFuzzer fuzzer;
  uint64_t loaded = 0;
  for (uint64_t i = 0; i < runs; ++i) {
    try {
      loaded += fuzzer.Loads(ChangedFiles(fuzzer, seed + i)) ? 1 : 0;
    } catch (const check::Failure&) {
      std::cerr << "ONEEMB_FUZZ_SEED=" << seed + i << '\n';
      throw;
    }
  }
  const uint64_t refused = runs - loaded;
  std::cout << loaded << " loaded, " << refused << " refused\n";
  // The repaired checksums let a good part of the changes through.
  CHECK(loaded > runs / 50);
  CHECK(refused > runs / 4);
}

// libFuzzer, where there is clang, goes far beyond.
TEST(TheFuzzTargetTakesAnyBytes) {
  std::mt19937_64 random(1);
  for (size_t size = 0; size < 200; ++size) {
    std::vector<uint8_t> input(size);
    for (uint8_t& byte : input) byte = static_cast<uint8_t>(random());
    CHECK_EQ(LLVMFuzzerTestOneInput(input.data(), size), 0);
  }
}

}  // namespace
}  // namespace oneemb::fuzz
