// The system's own Env, with both of its engines, on a real disk.
#include "store/env.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <random>

#include "store/files.h"
#include "store/io_queue.h"
#include "temp_folder.h"
#include "test_store.h"

namespace oneemb {
namespace {

// Every engine that this machine has. Threads always are.
std::vector<std::shared_ptr<Env>> Envs() {
  std::vector<std::shared_ptr<Env>> envs(1);
  CHECK_OK(NewPosixEnv(Engine::kThreads, &envs[0]));
  std::shared_ptr<Env> uring;
  const Status status = NewPosixEnv(Engine::kUring, &uring);
  if (status.ok()) {
    envs.push_back(uring);
  } else {
    CHECK_EQ(status.kind(), StatusKind::kUnavailable);
    std::cout << "without io_uring: " << status.message() << '\n';
  }
  return envs;
}

TEST(EnginesSayWhichTheyAre) {
  const auto envs = Envs();
  CHECK_EQ(std::string(envs[0]->engine_name()), "threads");
  std::shared_ptr<Env> chosen;
  CHECK_OK(NewPosixEnv(Engine::kAuto, &chosen));
  CHECK_EQ(std::string(chosen->engine_name()),
           std::string(envs.back()->engine_name()));
}

// Writes blocks in random order and reads them in another, many in flight.
void CheckTransfers(Env* env, Caching caching) {
  constexpr int kBlocks = 300;
  constexpr int kDepth = 16;
  const TempFolder folder;
  std::unique_ptr<File> file;
  CHECK_OK(env->Open(folder.path() + "/f", OpenMode::kCreate, caching, &file));
  CHECK_OK(file->Allocate(kBlocks * kBlockBytes));
  std::unique_ptr<IoQueue> queue;
  CHECK_OK(IoQueue::Open(env, kDepth, &queue));
  AlignedBuffer memory;
  CHECK_OK(memory.Resize(kBlocks * kBlockBytes));
  std::mt19937_64 random(1);
  std::vector<Transfer> transfers(kBlocks);
  for (const bool write : {true, false}) {
    for (int64_t i = 0; i < memory.size(); ++i) {
      memory.data()[i] = write ? static_cast<char>(i / kBlockBytes) : 'x';
    }
    std::vector<int64_t> order(kBlocks);
    for (int64_t i = 0; i < kBlocks; ++i) order[static_cast<size_t>(i)] = i;
    std::shuffle(order.begin(), order.end(), random);
    for (const int64_t block : order) {
      if (queue->full()) CHECK_OK(queue->Finish()->status);
      Transfer& transfer = transfers[static_cast<size_t>(block)];
      transfer.file = file.get();
      transfer.write = write;
      transfer.offset = block * kBlockBytes;
      transfer.data = memory.data() + block * kBlockBytes;
      transfer.bytes = kBlockBytes;
      queue->Start(&transfer);
    }
    while (queue->in_flight() > 0) CHECK_OK(queue->Finish()->status);
  }
  CHECK_OK(file->Sync());
  for (int64_t i = 0; i < memory.size(); ++i) {
    CHECK_EQ(memory.data()[i], static_cast<char>(i / kBlockBytes));
  }
}

TEST(TransfersAtDepth) {
  for (const auto& env : Envs()) {
    CheckTransfers(env.get(), Caching::kDirect);
    CheckTransfers(env.get(), Caching::kCached);
  }
}

// Without a descriptor to spare the kernel gives no ring.
TEST(ThreadsDoWhereThereIsNoRing) {
  std::shared_ptr<Env> env;
  CHECK_OK(NewPosixEnv(Engine::kAuto, &env));
  rlimit usual{};
  CHECK_EQ(getrlimit(RLIMIT_NOFILE, &usual), 0);
  const int next = open("/dev/null", O_RDONLY | O_CLOEXEC);
  CHECK(next >= 0);
  CHECK_EQ(close(next), 0);
  rlimit none = usual;
  none.rlim_cur = static_cast<rlim_t>(next);
  CHECK_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  std::unique_ptr<IoEngine> engine;
  const Status status = env->NewEngine(4, &engine);
  CHECK_EQ(setrlimit(RLIMIT_NOFILE, &usual), 0);
  CHECK_OK(status);
  CHECK(engine != nullptr);
}

TEST(ReadsPastTheEndAreCorruption) {
  for (const auto& env : Envs()) {
    const TempFolder folder;
    const std::string path = folder.path() + "/f";
    CHECK_OK(WriteFile(env.get(), path, "12345", 5));
    std::unique_ptr<File> file;
    std::unique_ptr<IoQueue> queue;
    AlignedBuffer memory;
    CHECK_OK(env->Open(path, OpenMode::kRead, Caching::kCached, &file));
    CHECK_OK(IoQueue::Open(env.get(), 1, &queue));
    CHECK_OK(memory.Resize(kBlockBytes));
    Transfer transfer;
    transfer.file = file.get();
    transfer.offset = kBlockBytes;
    transfer.data = memory.data();
    transfer.bytes = kBlockBytes;
    const Status status = queue->Run(&transfer);
    CHECK_EQ(status.kind(), StatusKind::kCorruption);
    CHECK(status.message().find(path) != std::string::npos);
    AlignedBuffer content;
    CHECK_OK(ReadFile(env.get(), path, 5, &content));
    CHECK_EQ(std::string(content.data(), 5), "12345");
    CHECK_EQ(ReadFile(env.get(), path, 4, &content).kind(),
             StatusKind::kCorruption);
  }
}

TEST(NamesBehaveAsTheStoreExpects) {
  const auto env = Envs()[0];
  const TempFolder folder;
  const std::string a = folder.path() + "/a";
  const std::string b = folder.path() + "/b";
  CHECK_OK(WriteFile(env.get(), a, "x", 1));
  CHECK_OK(env->Link(a, b));
  CHECK_EQ(env->Link(a, b).kind(), StatusKind::kAlreadyExists);
  CHECK_EQ(env->Rename(a, b).kind(), StatusKind::kAlreadyExists);
  std::unique_ptr<File> file;
  CHECK_EQ(env->Open(a, OpenMode::kCreate, Caching::kCached, &file).kind(),
           StatusKind::kAlreadyExists);
  CHECK_OK(env->MakeFolder(folder.path() + "/d"));
  CHECK_OK(env->MakeFolder(folder.path() + "/e"));
  // rename() alone would replace an empty folder.
  CHECK_EQ(env->Rename(folder.path() + "/d", folder.path() + "/e").kind(),
           StatusKind::kAlreadyExists);
  CHECK_OK(env->SyncFolder(folder.path()));
  std::vector<std::string> names;
  CHECK_OK(env->List(folder.path(), &names));
  CHECK(names == (std::vector<std::string>{"a", "b", "d", "e"}));
  CHECK_EQ(env->List(folder.path() + "/none", &names).kind(),
           StatusKind::kNotFound);
  CHECK_OK(RemoveTree(env.get(), folder.path() + "/d"));
  CHECK_OK(RemoveTree(env.get(), folder.path() + "/d"));
  CHECK(!env->Remove(folder.path() + "/e").ok());
}

// Runs in a forked child; true when `body` was.
template <class Body>
bool InChild(const Body& body) {
  std::cout.flush();
  const pid_t child = fork();
  if (child == 0) _exit(body() ? 0 : 1);
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child);
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

TEST(ALockNamesItsOwner) {
  const auto env = Envs()[0];
  const TempFolder folder;
  const std::string path = folder.path() + "/LOCK";
  std::unique_ptr<FileLock> lock;
  CHECK_OK(env->Lock(path, &lock));
  const std::string pid = std::to_string(getpid());
  // From this process, by another name of the file too, and from another.
  std::unique_ptr<FileLock> second;
  const std::string other = folder.path() + "/./LOCK";
  for (const std::string& name : {path, other}) {
    const Status status = env->Lock(name, &second);
    CHECK_EQ(status.kind(), StatusKind::kLocked);
    CHECK(status.message().find(pid) != std::string::npos);
  }
  CHECK(InChild([&] {
    std::unique_ptr<FileLock> theirs;
    const Status status = env->Lock(path, &theirs);
    return status.kind() == StatusKind::kLocked &&
           status.message().find(pid) != std::string::npos;
  }));
  lock.reset();
  CHECK_OK(env->Lock(path, &lock));
}

TEST(AForkedChildDoesNotKeepTheLock) {
  const auto env = Envs()[0];
  const TempFolder folder;
  const std::string path = folder.path() + "/LOCK";
  std::unique_ptr<FileLock> lock;
  CHECK_OK(env->Lock(path, &lock));
  int to_child[2];
  CHECK_EQ(pipe(to_child), 0);
  std::cout.flush();
  const pid_t child = fork();
  if (child == 0) {
    close(to_child[1]);
    char byte = 0;
    _exit(read(to_child[0], &byte, 1) == 0 ? 0 : 1);  // until we close
  }
  close(to_child[0]);
  lock.reset();
  CHECK_OK(env->Lock(path, &lock));  // while the child lives
  close(to_child[1]);
  int status = 0;
  CHECK(waitpid(child, &status, 0) == child);
}

StoreOptions RealOptions(const std::string& path, std::shared_ptr<Env> env) {
  StoreOptions options = SmallOptions(std::move(env), 1000);
  options.path = path;
  options.ssd.segment_bytes = int64_t{1} << 20;
  options.ssd.read_depth = 32;
  options.ssd.compaction = CompactionMode::kBackground;
  return options;
}

TEST(AStoreOnARealDisk) {
  for (const auto& env : Envs()) {
    const TempFolder folder;
    const StoreOptions options = RealOptions(folder.path() + "/a/b", env);
    auto store = OpenStore(options);
    std::mt19937_64 random(3);
    Model model;
    for (int i = 0; i < 20; ++i) {
      const TestBatch batch = RandomBatch(&random, 500, 1000, 600);
      CHECK_OK(store->Put(batch.span(), batch.rows.data()));
      PutInto(&model, batch);
    }
    CheckHolds(store.get(), model, 600);
    CHECK_OK(store->Save("s", "user"));
    StoreStats stats;
    CHECK_OK(store->Stats(&stats));
    CHECK_EQ(stats.engine, std::string(env->engine_name()));
    CHECK_EQ(stats.rows, static_cast<int64_t>(model.size()));
    store.reset();
    store = OpenStore(options);
    CHECK_OK(store->Verify("s"));
    CHECK_OK(store->Load("s", nullptr));
    CheckHolds(store.get(), model, 600);
    // A copy elsewhere opens as well.
    std::filesystem::copy(options.path + "/snap/s", folder.path() + "/copy");
    const auto other = OpenStore(RealOptions(folder.path() + "/other", env));
    CHECK_OK(other->LoadFrom(folder.path() + "/copy", nullptr));
    CheckHolds(other.get(), model, 600);
  }
}

TEST(AForkedChildsStoreRefusesUse) {
  const TempFolder folder;
  const auto env = Envs().back();
  auto store = OpenStore(RealOptions(folder.path() + "/s", env));
  const Key key{1, 2};
  const std::vector<char> row(1000, 'r');
  CHECK_OK(store->Put({&key, 1}, row.data()));
  CHECK(InChild([&] {
    uint8_t found = 0;
    std::vector<char> out(1000);
    const Status status = store->Fetch({&key, 1}, out.data(), &found);
    const bool refused = status.kind() == StatusKind::kUnavailable &&
                         !store->Put({&key, 1}, row.data()).ok() &&
                         !store->Save("x", "").ok();
    store.reset();  // neither waits for threads nor removes a file
    return refused && found == kRowFailed;
  }));
  CHECK(!std::filesystem::is_empty(folder.path() + "/s/seg"));
  uint8_t found = 0;
  std::vector<char> out(1000);
  CHECK_OK(store->Fetch({&key, 1}, out.data(), &found));
  CHECK(found == kRowFound && out == row);
}

// What is in the place of a folder that was deleted is another store's.
TEST(AStoreWhoseFolderIsGoneRemovesNoOthersFiles) {
  const TempFolder folder;
  const StoreOptions options = RealOptions(folder.path() + "/s", Envs().back());
  const Key key{1, 2};
  const std::vector<char> row(1000, 'r');
  auto first = OpenStore(options);
  CHECK_OK(first->Put({&key, 1}, row.data()));
  std::filesystem::remove_all(options.path);
  const auto second = OpenStore(options);
  CHECK_OK(second->Put({&key, 1}, row.data()));
  first.reset();
  CHECK(!std::filesystem::is_empty(options.path + "/seg"));
  CHECK_OK(second->Save("s", ""));
  CHECK_OK(second->Verify("s"));
}

TEST(UnchangedRowsAreNotWrittenAgain) {
  for (const StoreKind kind : kAllKinds) {
    const TempFolder folder;
    StoreOptions options = RealOptions(folder.path() + "/s", Envs().back());
    options.kind = kind;
    options.host_budget_bytes = int64_t{4} << 20;
    const auto store = OpenStore(options);
    std::mt19937_64 random(1);
    const TestBatch batch = RandomBatch(&random, 500, 1000, 400);
    CHECK_OK(store->Put(batch.span(), batch.rows.data()));
    CHECK_OK(store->Save("a", ""));
    CHECK_OK(store->Save("b", ""));
    int shared = 0;
    for (const auto& entry :
         std::filesystem::directory_iterator(options.path + "/snap/b")) {
      const std::filesystem::path other =
          options.path + "/snap/a/" + entry.path().filename().string();
      if (entry.path().extension() != ".seg") continue;
      CHECK(std::filesystem::equivalent(entry.path(), other));
      ++shared;
    }
    CHECK(shared > 0);
    CHECK_OK(store->Delete("a"));
    CHECK_OK(store->Verify("b"));
  }
}

}  // namespace
}  // namespace oneemb
