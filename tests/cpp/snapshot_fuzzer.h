// A snapshot whose files a test has changed: checksums made right again, and
// what a store makes of it. For fuzz_test.cc and fuzz_target.cc.
#pragma once

#include <algorithm>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "store/crc32c.h"
#include "store/manifest.h"
#include "test_store.h"

namespace oneemb::fuzz {

using Bytes = std::vector<char>;
// Content by path.
using Files = std::map<std::string, Bytes>;

constexpr int64_t kWidth = 200;
constexpr char kFolder[] = "store/snap/s/";

template <class T>
T Load(const Bytes& bytes, size_t at) {
  T value{};
  std::memcpy(&value, bytes.data() + at, sizeof(T));
  return value;
}

// Changes no size: what would lie beyond the end is left out.
template <class T>
void Put(Bytes* bytes, size_t at, T value) {
  if (at + sizeof(T) <= bytes->size()) {
    std::memcpy(bytes->data() + at, &value, sizeof(T));
  }
}

inline uint32_t CrcOf(const Bytes& bytes, size_t begin, size_t end) {
  return Crc32c(bytes.data() + begin, static_cast<int64_t>(end - begin));
}

inline void RepairManifest(Bytes* manifest) {
  if (manifest->size() < 4) return;
  const size_t end = manifest->size() - 4;
  Put(manifest, end, CrcOf(*manifest, 0, end));
}

// Makes the manifest's checksums those of LIVE, and its counts too.
inline void RepairLive(const Bytes& live, Bytes* manifest) {
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
}

inline void RepairSegment(Bytes* segment) {
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

// Which checksums to make right again.
enum class Repair { kNone, kAllButLive, kAll };

inline void RepairFiles(Repair what, Files* files) {
  if (what == Repair::kNone) return;
  for (auto& [path, bytes] : *files) {
    if (path.find(".seg") != std::string::npos) RepairSegment(&bytes);
  }
  Bytes* const manifest = &(*files)[std::string(kFolder) + "MANIFEST"];
  if (what == Repair::kAll) {
    RepairLive((*files)[std::string(kFolder) + "LIVE"], manifest);
  }
  RepairManifest(manifest);
}

// A simulated disk with a good snapshot of a small store.
class SnapshotFuzzer {
 public:
  SnapshotFuzzer() {
    const auto store = OpenStore(SmallOptions(env_, kWidth));
    std::mt19937_64 random(5);
    for (int i = 0; i < 4; ++i) {
      const TestBatch batch = RandomBatch(&random, 20, kWidth, 20);
      CHECK_OK(store->Put(batch.span(), batch.rows.data()));
    }
    CHECK_OK(store->Save("s", "user"));
    for (const std::string& path : env_->Files()) {
      if (path.rfind(kFolder, 0) != 0) continue;
      paths_.push_back(path);
      good_[path] = env_->Content(path);
    }
  }

  // Of the snapshot's files, in one order for good.
  const std::vector<std::string>& paths() const { return paths_; }
  const Files& good() const { return good_; }

  // Whether a store loads the snapshot when its files are these. A failed check
  // unless it either does and works, or refuses it and is as it was.
  bool Loads(const Files& files) {
    for (const auto& [path, bytes] : files) env_->SetContent(path, bytes);
    const bool loaded = Inspect();
    env_->SyncAll();
    return loaded;
  }

 private:
  bool Inspect() {
    const auto store = OpenStore(SmallOptions(env_, kWidth));
    const Key key{77, 7};
    const Bytes row = MakeRow(key, 1, kWidth);
    CHECK_OK(store->Put({&key, 1}, row.data()));
    (void)store->Verify("s").ok();
    std::string user;
    // The rows are looked at below, one by one.
    const Status status = store->Load("s", &user, LoadCheck::kStructure);
    if (!status.ok()) {
      CHECK(!status.message().empty());
      CHECK(Dump(store.get()) == Model({{key, row}}));
      return false;
    }
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
    return true;
  }

  std::shared_ptr<SimEnv> env_ = std::make_shared<SimEnv>(2);
  std::vector<std::string> paths_;
  Files good_;
};

}  // namespace oneemb::fuzz
