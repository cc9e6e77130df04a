// Files of a snapshot changed at random, with their checksums made right again,
// else every input would end at the first of them. Whatever the bytes, nothing
// crashes, and a load that fails leaves the store as it was.
//
// ONEEMB_FUZZ_RUNS=1000000 runs for longer; ONEEMB_FUZZ_SEED begins elsewhere.
#include <algorithm>
#include <cstring>

#include "setting.h"
#include "store/crc32c.h"
#include "store/manifest.h"
#include "test_store.h"

namespace oneemb {
namespace {

constexpr int64_t kWidth = 200;
constexpr char kFolder[] = "store/snap/s/";

using Bytes = std::vector<char>;

template <class T>
T Load(const Bytes& bytes, size_t at) {
  T value{};
  std::memcpy(&value, bytes.data() + at, sizeof(T));
  return value;
}

template <class T>
void Put(Bytes* bytes, size_t at, T value) {
  if (at + sizeof(T) <= bytes->size()) {
    std::memcpy(bytes->data() + at, &value, sizeof(T));
  }
}

uint32_t CrcOf(const Bytes& bytes, size_t begin, size_t end) {
  return Crc32c(bytes.data() + begin, static_cast<int64_t>(end - begin));
}

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

void RepairManifest(Bytes* manifest) {
  if (manifest->size() < 4) return;
  const size_t end = manifest->size() - 4;
  Put(manifest, end, CrcOf(*manifest, 0, end));
}

// Makes the manifest's checksums those of LIVE, and its counts too.
void RepairLive(const Bytes& live, Bytes* manifest) {
  constexpr size_t kHead = 40;
  constexpr size_t kLine = 40;
  size_t begin = 0;
  uint64_t num_rows = 0;
  for (size_t line = kHead; line + kLine <= manifest->size(); line += kLine) {
    const auto slots = Load<uint64_t>(*manifest, line + 16);
    const size_t end = begin + (slots + 63) / 64 * 8;
    if (slots > live.size() * 8 || end > live.size()) break;
    uint64_t count = 0;
    for (size_t at = begin; at < end; at += 8) {
      count +=
          static_cast<uint64_t>(__builtin_popcountll(Load<uint64_t>(live, at)));
    }
    num_rows += count;
    Put(manifest, line + 24, count);
    Put(manifest, line + 32, CrcOf(live, begin, end));
    begin = end;
  }
  Put(manifest, 16, num_rows);
  RepairManifest(manifest);
}

void RepairSegment(Bytes* segment) {
  const size_t size = segment->size();
  if (size < 3 * kBlockBytes) return;
  const size_t trailer = size - kBlockBytes;
  const auto zero_rest = [&](size_t block, size_t used) {
    const auto begin = segment->begin() + static_cast<int64_t>(block);
    std::fill(begin + static_cast<int64_t>(used), begin + kBlockBytes, '\0');
  };
  zero_rest(0, 48);
  zero_rest(trailer, 40);
  Put(segment, 44, CrcOf(*segment, 0, 44));
  const auto slots = Load<uint64_t>(*segment, trailer + 24);
  if (slots <= static_cast<uint64_t>(kMaxSegmentSlots)) {
    const auto keys =
        static_cast<size_t>(KeysBytes(static_cast<int64_t>(slots)));
    if (keys <= trailer) {
      Put(segment, trailer + 32, CrcOf(*segment, trailer - keys, trailer));
    }
  }
  Put(segment, trailer + 36, CrcOf(*segment, trailer, trailer + 36));
}

struct Fuzzer {
  std::shared_ptr<SimEnv> env = std::make_shared<SimEnv>(2);
  std::vector<std::string> paths;
  std::map<std::string, Bytes> good;
  int64_t loaded = 0;
  int64_t refused = 0;

  Fuzzer() {
    const auto store = OpenStore(SmallOptions(env, kWidth));
    std::mt19937_64 random(5);
    for (int i = 0; i < 4; ++i) {
      const TestBatch batch = RandomBatch(&random, 20, kWidth, 20);
      CHECK_OK(store->Put(batch.span(), batch.rows.data()));
    }
    CHECK_OK(store->Save("s", "user"));
    for (const std::string& path : env->Files()) {
      if (path.rfind(kFolder, 0) != 0) continue;
      paths.push_back(path);
      good[path] = env->Content(path);
    }
  }

  // One changed snapshot, in and out.
  void Run(uint64_t seed) {
    std::mt19937_64 random(seed);
    std::map<std::string, Bytes> files = good;
    const std::string manifest = std::string(kFolder) + "MANIFEST";
    for (uint64_t files_left = 1 + random() % 2; files_left > 0; --files_left) {
      Bytes* const file = &files[paths[random() % paths.size()]];
      for (uint64_t n = 1 + random() % 3; n > 0; --n) MutateOnce(file, &random);
    }
    if (random() % 8 != 0) {
      for (auto& [path, bytes] : files) {
        if (path.find(".seg") != std::string::npos) RepairSegment(&bytes);
      }
      if (random() % 4 != 0) {
        RepairLive(files[std::string(kFolder) + "LIVE"], &files[manifest]);
      }
      RepairManifest(&files[manifest]);
    }
    for (const auto& [path, bytes] : files) env->SetContent(path, bytes);
    Inspect();
    env->SyncAll();
  }

  void Inspect() {
    const auto store = OpenStore(SmallOptions(env, kWidth));
    const Key key{77, 7};
    const Bytes row = MakeRow(key, 1, kWidth);
    CHECK_OK(store->Put({&key, 1}, row.data()));
    (void)store->Verify("s").ok();
    std::string user;
    // The rows are looked at below, one by one.
    const Status status = store->Load("s", &user, LoadCheck::kStructure);
    if (!status.ok()) {
      ++refused;
      CHECK(!status.message().empty());
      CHECK(Dump(store.get()) == Model({{key, row}}));
      return;
    }
    ++loaded;
    std::unique_ptr<RowSource> rows;
    CHECK_OK(store->Iterate(&rows));
    RowBatch batch;
    do {
      (void)rows->Next(&batch).ok();
    } while (!batch.empty());
    CHECK_OK(store->Put({&key, 1}, row.data()));
    uint8_t found = 0;
    Bytes out(kWidth);
    CHECK_OK(store->Fetch({&key, 1}, out.data(), &found));
    CHECK(found == kRowFound && out == row);
  }
};

TEST(ChangedSnapshotsDoNoHarm) {
  const uint64_t runs = Setting("ONEEMB_FUZZ_RUNS", 4000);
  const uint64_t seed = Setting("ONEEMB_FUZZ_SEED", 1);
  Fuzzer fuzzer;
  for (uint64_t i = 0; i < runs; ++i) {
    try {
      fuzzer.Run(seed + i);
    } catch (const check::Failure&) {
      std::cerr << "ONEEMB_FUZZ_SEED=" << seed + i << '\n';
      throw;
    }
  }
  std::cout << fuzzer.loaded << " loaded, " << fuzzer.refused << " refused\n";
  // The repaired checksums let a good part of the changes through.
  CHECK(fuzzer.loaded > static_cast<int64_t>(runs / 50));
  CHECK(fuzzer.refused > static_cast<int64_t>(runs / 4));
}

}  // namespace
}  // namespace oneemb
