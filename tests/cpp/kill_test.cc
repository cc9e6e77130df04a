// A process that puts, erases, compacts, saves, loads and deletes on a real
// disk is killed with SIGKILL, at a random instant or at a chosen call. After
// each kill every snapshot that it had reported is there and holds exactly its
// rows, and no other is reported. The next process goes on in the same folder.
//
// ONEEMB_KILLS=2000 kills more often; ONEEMB_KILL_SEED begins elsewhere.
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstring>
#include <set>

#include "kill_env.h"
#include "setting.h"
#include "temp_folder.h"
#include "test_store.h"

namespace oneemb {
namespace {

constexpr int64_t kWidth = 600;
constexpr uint64_t kIds = 100;
constexpr size_t kMostSnapshots = 4;
using Models = std::map<std::string, Model>;

enum class Act { kPut, kErase, kCompact, kSave, kDelete, kLoad };

// What a process does, step by step: decided by a seed and by the snapshots
// that it finds, so that who watches it can tell what its rows were.
class Script {
 public:
  Script(uint64_t seed, std::string prefix, Models saved)
      : random_(seed), prefix_(std::move(prefix)), saved_(std::move(saved)) {}

  // Decides the next step.
  void Next() {
    const uint64_t choice = random_() % 16;
    // The first is to go on from a snapshot, where there is one.
    act = first_ || choice == 0 ? Act::kLoad
          : choice < 3          ? Act::kErase
          : choice == 3         ? Act::kCompact
          : choice < 7          ? Act::kSave
                                : Act::kPut;
    first_ = false;
    if (act == Act::kLoad && saved_.empty()) act = Act::kPut;
    if (act == Act::kSave && saved_.size() >= kMostSnapshots) {
      act = Act::kDelete;
    }
    if (act == Act::kPut || act == Act::kErase) {
      batch = RandomBatch(&random_, 1 + static_cast<int64_t>(random_() % 40),
                          kWidth, kIds);
    }
    if (act == Act::kSave) name = prefix_ + std::to_string(++saves_);
    if (act == Act::kLoad || act == Act::kDelete) {
      const auto nth = static_cast<int64_t>(random_() % saved_.size());
      name = std::next(saved_.begin(), nth)->first;
    }
  }

  // The step was taken.
  void Done() {
    if (act == Act::kPut) PutInto(&rows, batch);
    if (act == Act::kErase) {
      for (const Key key : batch.keys) rows.erase(key);
    }
    if (act == Act::kSave) saved_[name] = rows;
    if (act == Act::kDelete) saved_.erase(name);
    if (act == Act::kLoad) rows = saved_.at(name);
  }

  const Models& saved() const { return saved_; }

  Act act = Act::kPut;
  TestBatch batch;   // of kPut and kErase
  std::string name;  // of kSave, kDelete and kLoad
  Model rows;        // of the store

 private:
  std::mt19937_64 random_;
  const std::string prefix_;
  Models saved_;
  bool first_ = true;
  int saves_ = 0;
};

Status Take(const Script& script, Store* store) {
  switch (script.act) {
    case Act::kPut:
      return store->Put(script.batch.span(), script.batch.rows.data());
    case Act::kErase: {
      std::vector<uint8_t> erased(script.batch.keys.size());
      return store->Erase(script.batch.span(), erased.data());
    }
    case Act::kCompact:
      return store->Compact();
    case Act::kSave:
      return store->Save(script.name, script.name);
    case Act::kDelete:
      return store->Delete(script.name);
    case Act::kLoad:
      return store->Load(script.name, nullptr);
  }
  return {};
}

bool IsReported(Act act) { return act == Act::kSave || act == Act::kDelete; }

// The lines before and after such a step.
std::string BeginLine(const Script& script) {
  return (script.act == Act::kSave ? "save " : "delete ") + script.name;
}
std::string EndLine(const Script& script) {
  return (script.act == Act::kSave ? "saved " : "deleted ") + script.name;
}

// A line is one write, which a kill leaves whole or undone.
void Report(int pipe, const std::string& line) {
  const std::string text = line + "\n";
  const auto size = static_cast<ssize_t>(text.size());
  if (write(pipe, text.data(), text.size()) != size) _exit(1);
}

// Where a process kills itself, if it lives that long.
struct KillCall {
  KillPoint point = KillPoint::kNone;
  uint64_t call = 0;
  bool after = false;
};

std::shared_ptr<Env> EnvOf(Engine engine) {
  std::shared_ptr<Env> env;
  CHECK_OK(NewPosixEnv(engine, &env));
  return env;
}

// The life of the process that is killed. Its files are its own: the threads
// behind another's do not outlive a fork.
[[noreturn]] void Live(StoreOptions options, Engine engine,
                       const KillCall& call, Script script, int pipe) {
  options.env = EnvOf(engine);
  if (call.point != KillPoint::kNone) {
    options.env = std::make_shared<KillEnv>(options.env, call.point, call.call,
                                            call.after);
  }
  std::unique_ptr<Store> store;
  Status status = Store::Open(options, &store);
  while (status.ok()) {
    script.Next();
    const bool reported = IsReported(script.act);
    if (reported) Report(pipe, BeginLine(script));
    status = Take(script, store.get());
    if (!status.ok()) break;
    script.Done();
    if (reported) Report(pipe, EndLine(script));
  }
  Report(pipe, "failed " + status.message());
  _exit(1);
}

// Reads what a process reports until its end, which comes after `patience` by
// our hand if not before by its own.
std::set<std::string> Watch(pid_t process, int pipe,
                            std::chrono::microseconds patience) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point deadline = Clock::now() + patience;
  std::string text;
  char part[4096];
  for (bool killed = false;;) {
    const auto left = std::chrono::duration_cast<std::chrono::nanoseconds>(
        deadline - Clock::now());
    if (!killed && left.count() <= 0) {
      CHECK_EQ(kill(process, SIGKILL), 0);
      killed = true;
    }
    timespec wait{};
    wait.tv_nsec = killed ? 999'999'999 : left.count() % 1'000'000'000;
    pollfd ready{pipe, POLLIN, 0};
    if (ppoll(&ready, 1, &wait, nullptr) <= 0) continue;
    const ssize_t got = read(pipe, part, sizeof(part));
    if (got <= 0) break;
    text.append(part, static_cast<size_t>(got));
  }
  int status = 0;
  CHECK(waitpid(process, &status, 0) == process);
  std::set<std::string> lines;
  std::istringstream in(text);
  for (std::string line; std::getline(in, line);) lines.insert(line);
  if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL) {
    check::Fail("not killed: " + text, __FILE__, __LINE__);
  }
  return lines;
}

// What a dead process is known to have done.
struct Known {
  Models saved;           // reported, and not deleted
  std::string in_flight;  // the snapshot being saved or deleted
  Model in_flight_rows;
};

Known Replay(Script script, const std::set<std::string>& lines) {
  for (;;) {
    script.Next();
    if (IsReported(script.act) && lines.count(EndLine(script)) == 0) {
      Known known{script.saved(), "", {}};
      if (lines.count(BeginLine(script)) != 0) {
        const bool save = script.act == Act::kSave;
        known.in_flight = script.name;
        known.in_flight_rows = save ? script.rows : known.saved.at(script.name);
        known.saved.erase(script.name);
      }
      return known;
    }
    script.Done();
  }
}

// Checks what is on the disk; returns the snapshots that there are.
Models CheckSnapshots(const StoreOptions& options, const Known& known) {
  const auto store = OpenStore(options);
  std::vector<std::string> names;
  CHECK_OK(store->List(&names));
  Models there;
  for (const std::string& name : names) {
    const auto it = known.saved.find(name);
    CHECK(it != known.saved.end() || name == known.in_flight);
    const Model& rows =
        it != known.saved.end() ? it->second : known.in_flight_rows;
    CHECK_OK(store->Verify(name));
    std::string user;
    CHECK_OK(store->Load(name, &user));
    CHECK_EQ(user, name);
    CHECK(Dump(store.get()) == rows);
    there[name] = rows;
  }
  for (const auto& entry : known.saved) CHECK(there.count(entry.first) != 0);
  for (const auto& entry : std::filesystem::directory_iterator(
           std::filesystem::path(options.path) / "tmp")) {
    check::Fail("left behind: " + entry.path().string(), __FILE__, __LINE__);
  }
  return there;
}

// One kind of store and one engine in a folder of their own.
struct Victim {
  Victim(StoreKind kind, Engine disk_engine) : engine(disk_engine) {
    options = SmallOptions(nullptr, kWidth, kind);
    options.path = folder.path() + "/s";
    options.host_budget_bytes = int64_t{1} << 20;
    if (kind == StoreKind::kCachedSsd) options.host_budget_bytes = 64 << 10;
    options.ssd.segment_bytes = int64_t{32} << 10;
    options.ssd.compaction = CompactionMode::kBackground;
  }

  void Kill(uint64_t seed) {
    std::mt19937_64 random(seed);
    KillCall call;
    // A half at random instants, a half at chosen calls. A call that is never
    // made is a random instant too.
    auto patience = std::chrono::microseconds(random() % 120'000);
    if (random() % 2 == 0) {
      call.point = kAllKillPoints[random() % std::size(kAllKillPoints)];
      call.call = random() % 24;
      call.after = random() % 2 == 0;
      patience = std::chrono::milliseconds(900);
    }
    const Script script(seed, "s" + std::to_string(seed) + "-", saved);
    int ends[2];
    CHECK_EQ(pipe(ends), 0);
    std::cout.flush();
    const pid_t process = fork();
    if (process == 0) {
      close(ends[0]);
      Live(options, engine, call, script, ends[1]);
    }
    CHECK(process > 0);
    close(ends[1]);
    const std::set<std::string> lines = Watch(process, ends[0], patience);
    close(ends[0]);
    reports += lines.size();
    ++kills;
    // No thread of ours is there at the next fork.
    StoreOptions ours = options;
    ours.env = EnvOf(engine);
    saved = CheckSnapshots(ours, Replay(script, lines));
  }

  const TempFolder folder;
  const Engine engine;
  StoreOptions options;  // without an Env
  Models saved;
  size_t reports = 0;
  size_t kills = 0;
};

// The engines that this machine has.
std::vector<Engine> Engines() {
  std::vector<Engine> engines;
  for (const Engine engine : {Engine::kUring, Engine::kThreads}) {
    std::shared_ptr<Env> env;
    const Status status = NewPosixEnv(engine, &env);
    if (status.kind() == StatusKind::kUnavailable) {
      std::cout << status.message() << '\n';
      continue;
    }
    CHECK_OK(status);
    engines.push_back(engine);
  }
  return engines;
}

TEST(AKillLosesNothingThatWasSaved) {
  std::vector<std::unique_ptr<Victim>> victims;
  for (const Engine engine : Engines()) {
    for (const StoreKind kind : kAllKinds) {
      victims.push_back(std::make_unique<Victim>(kind, engine));
    }
  }
  const uint64_t kills = Setting("ONEEMB_KILLS", 12);
  const uint64_t seed = Setting("ONEEMB_KILL_SEED", 1);
  for (uint64_t i = 0; i < kills; ++i) {
    try {
      victims[i % victims.size()]->Kill(seed + i);
    } catch (const check::Failure&) {
      std::cerr << "ONEEMB_KILL_SEED=" << seed + i << '\n';
      throw;
    }
  }
  size_t reports = 0;
  for (const auto& victim : victims) reports += victim->reports;
  std::cout << kills << " kills, " << victims.size()
            << " kinds of store and engine, " << reports << " reports\n";
  // They were killed at work, not before it. A few may all be too early.
  CHECK(reports > kills || kills < 50);
  for (const auto& victim : victims) {
    CHECK(victim->reports > victim->kills || victim->kills < 50);
  }
}

}  // namespace
}  // namespace oneemb
