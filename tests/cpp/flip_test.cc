// Every single bit of a snapshot: wrong, it is found, or it is one that nothing
// reads. No row is ever returned that was not put.
//
// ONEEMB_FLIP_STEP=1 flips every bit of segments too, not one in 37.
#include <algorithm>

#include "setting.h"
#include "test_store.h"

namespace oneemb {
namespace {

constexpr int64_t kWidth = 200;

// A folder with one snapshot, "s", and what it holds.
std::shared_ptr<SimEnv> MakeSnapshot(int batches, Model* model) {
  const auto env = std::make_shared<SimEnv>(2);
  const auto store = OpenStore(SmallOptions(env, kWidth));
  std::mt19937_64 random(5);
  for (int i = 0; i < batches; ++i) {
    const TestBatch batch = RandomBatch(&random, 12, kWidth, 20);
    CHECK_OK(store->Put(batch.span(), batch.rows.data()));
    PutInto(model, batch);
  }
  CHECK_OK(store->Save("s", "user"));
  return env;
}

enum class Outcome { kFound, kHarmless };

// Verifies, loads and reads a snapshot of which something is wrong.
Outcome Inspect(const std::shared_ptr<SimEnv>& env, const Model& model) {
  const auto store = OpenStore(SmallOptions(env, kWidth));
  const bool verified = store->Verify("s").ok();
  const Status checked = store->Load("s", nullptr);
  CHECK_EQ(checked.ok(), verified);
  if (!checked.ok()) CHECK(Dump(store.get()).empty());
  const Status loaded = store->Load("s", nullptr, LoadCheck::kStructure);
  if (!loaded.ok()) {
    CHECK(!verified);
    CHECK(Dump(store.get()).empty());  // nothing was changed
    for (const std::string& path : env->Files()) {
      CHECK(path.rfind("store/seg/", 0) != 0);
    }
    return Outcome::kFound;
  }
  std::vector<Key> keys;
  for (const auto& entry : model) keys.push_back(entry.first);
  std::vector<char> rows(keys.size() * kWidth);
  std::vector<uint8_t> found(keys.size());
  const Status read =
      store->Fetch({keys.data(), static_cast<int64_t>(keys.size())},
                   rows.data(), found.data());
  for (size_t i = 0; i < keys.size(); ++i) {
    if (!read.ok() && found[i] == kRowFailed) continue;
    CHECK_EQ(found[i], kRowFound);
    const auto begin = rows.begin() + static_cast<int64_t>(i) * kWidth;
    CHECK(std::equal(begin, begin + kWidth, model.at(keys[i]).begin()));
  }
  CHECK_EQ(read.ok(), verified);
  return verified ? Outcome::kHarmless : Outcome::kFound;
}

TEST(EveryFlippedBitIsFoundOrHarmless) {
  Model model;
  const auto env = MakeSnapshot(3, &model);
  int64_t found = 0;
  int64_t harmless = 0;
  for (const std::string& path : env->Files()) {
    if (path.rfind("store/snap/", 0) != 0) continue;
    const std::vector<char> good = env->Content(path);
    // Every bit of what is small, and some of segments.
    const bool segment = path.find(".seg") != std::string::npos;
    const size_t step = segment ? Setting("ONEEMB_FLIP_STEP", 37) : 1;
    for (size_t bit = 0; bit < good.size() * 8; bit += step) {
      std::vector<char> bad = good;
      bad[bit / 8] = static_cast<char>(bad[bit / 8] ^ (1 << (bit % 8)));
      env->SetContent(path, bad);
      const Outcome outcome = Inspect(env, model);
      env->SyncAll();
      ++(outcome == Outcome::kFound ? found : harmless);
      // Only padding of frames may pass.
      CHECK(outcome == Outcome::kFound || segment);
    }
    env->SetContent(path, good);
  }
  std::cout << found << " found, " << harmless << " harmless\n";
  CHECK(found > 1000);
  CHECK_OK(OpenStore(SmallOptions(env, kWidth))->Verify("s"));
}

TEST(FilesThatAreCutSwappedOrMissingAreFound) {
  Model model;
  const auto env = MakeSnapshot(10, &model);
  std::vector<std::string> paths;
  for (const std::string& path : env->Files()) {
    if (path.rfind("store/snap/", 0) == 0) paths.push_back(path);
  }
  CHECK(paths.size() >= 4);
  for (const std::string& path : paths) {
    const std::vector<char> good = env->Content(path);
    for (const size_t cut :
         {size_t{1}, size_t{511}, size_t{512}, size_t{4096}, good.size()}) {
      std::vector<char> bad = good;
      bad.resize(good.size() - std::min(cut, good.size()));
      env->SetContent(path, bad);
      CHECK(Inspect(env, model) == Outcome::kFound);
    }
    std::vector<char> longer = good;
    longer.push_back('\0');
    env->SetContent(path, longer);
    CHECK(Inspect(env, model) == Outcome::kFound);
    for (const std::string& other : paths) {
      if (other == path) continue;
      env->SetContent(path, env->Content(other));
      CHECK(Inspect(env, model) == Outcome::kFound);
    }
    env->SetContent(path, good);
  }
  for (const std::string& path : paths) {
    const std::vector<char> good = env->Content(path);
    CHECK_OK(env->Remove(path));
    CHECK(Inspect(env, model) == Outcome::kFound);
    std::unique_ptr<File> file;
    CHECK_OK(env->Open(path, OpenMode::kCreate, Caching::kCached, &file));
    env->SetContent(path, good);
  }
  CHECK(Inspect(env, model) == Outcome::kHarmless);
}

}  // namespace
}  // namespace oneemb
