// The system has no memory: at each single request for it, and from each one
// on. The call says so, the store is as it was, and goes on when there is some
// again. No thread ends the process, nothing leaks.
//
// ONEEMB_MEMORY_STEP=1 tries every request, not one in 11.
#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <new>

#include "setting.h"
#include "store_worker.h"
#include "temp_folder.h"

namespace {

std::atomic<bool> armed{false};
std::atomic<bool> for_ever{false};
std::atomic<int64_t> left{0};  // requests that succeed
std::atomic<int64_t> refused{0};

bool Refuses() {
  if (!armed) return false;
  const int64_t before = left--;
  if (before > 0 || (before < 0 && !for_ever)) return false;
  ++refused;
  return true;
}

}  // namespace

// Not inlined: g++ would see new answered by free, and warn. The form that does
// not throw has to be here too: the address sanitizer brings its own.
[[gnu::noinline]] void* operator new(size_t bytes) {
  void* const memory = Refuses() ? nullptr : std::malloc(bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
[[gnu::noinline]] void* operator new(size_t bytes,
                                     const std::nothrow_t&) noexcept {
  return Refuses() ? nullptr : std::malloc(bytes);
}
[[gnu::noinline]] void operator delete(void* memory) noexcept {
  std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, size_t) noexcept {
  std::free(memory);
}

namespace oneemb {
namespace {

// Requests are refused while one of these lives.
class Armed {
 public:
  Armed() { armed = true; }
  ~Armed() { armed = false; }
  Armed(const Armed&) = delete;
  Armed& operator=(const Armed&) = delete;
};

Status RunArmed(const std::function<Status()>& call) {
  const Armed guard;
  return call();
}

// Memory, where there is such a file system: syncs cost nothing there.
std::string FastFolder() {
  return std::filesystem::is_directory("/dev/shm") ? "/dev/shm" : ".";
}

// A store that could not be opened can be opened afterwards.
std::unique_ptr<Store> Open(const StoreOptions& options) {
  std::unique_ptr<Store> store;
  const Status status = RunArmed([&] { return Store::Open(options, &store); });
  if (status.ok()) return store;
  CHECK(!status.message().empty() && store == nullptr);
  left = INT64_MAX;
  return OpenStore(options);
}

// Whether request k was made at all.
bool RunWithout(StoreKind kind, Engine engine, int64_t k, bool lasting) {
  const TempFolder folder(FastFolder());
  std::shared_ptr<Env> env;
  CHECK_OK(NewPosixEnv(engine, &env));
  StoreOptions options = SmallOptions(env, kWorkerWidth, kind);
  options.path = folder.path() + "/s";
  refused = 0;
  left = k;
  for_ever = lasting;
  std::unique_ptr<Store> store = Open(options);
  Worker worker(store.get(), RunArmed);
  worker.Run();
  left = INT64_MAX;  // there is memory again
  worker.CheckAllThere(lasting);
  {
    const Armed guard;
    store.reset();
  }
  return refused > 0;
}

int64_t Sweep(StoreKind kind, Engine engine, bool lasting, uint64_t step) {
  int64_t tried = 0;
  bool reached = true;
  for (int64_t k = 0; reached; k += static_cast<int64_t>(step)) {
    try {
      reached = RunWithout(kind, engine, k, lasting);
    } catch (const check::Failure&) {
      armed = false;
      std::cerr << "request " << k << ", kind " << static_cast<int>(kind)
                << ", engine " << static_cast<int>(engine) << ", lasting "
                << lasting << '\n';
      throw;
    }
    ++tried;
  }
  return tried;
}

TEST(NoRequestForMemoryMustSucceed) {
  const uint64_t step = Setting("ONEEMB_MEMORY_STEP", 11);
  int64_t tried = 0;
  for (const Engine engine : {Engine::kAuto, Engine::kThreads}) {
    for (const StoreKind kind : kAllKinds) {
      for (const bool lasting : {false, true}) {
        tried += Sweep(kind, engine, lasting, step);
      }
    }
  }
  std::cout << tried << " requests refused\n";
  CHECK(tried > 100);
}

}  // namespace
}  // namespace oneemb
