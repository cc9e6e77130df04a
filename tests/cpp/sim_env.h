// A disk in memory that fails as it is told to.
//
// It knows which bytes and which names are safe from a loss of power, counts
// its calls, fails the one that a test chooses, and can be left by a crash in
// every state that such a disk may be in.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "store/env.h"
#include "store/mutex.h"

namespace oneemb {

// What becomes of that which was not synced.
enum class Loss {
  kDropAll,
  kKeepAll,
  kRandom,   // each write and each change of a name is kept or lost
  kTorn,     // each sector of 512 bytes is
  kGarbage,  // each block of 4 KiB is kept, old, zeros or noise
};
constexpr Loss kAllLosses[] = {Loss::kDropAll, Loss::kKeepAll, Loss::kRandom,
                               Loss::kTorn, Loss::kGarbage};

// How a chosen call fails.
enum class Fault {
  kIoError,
  kNoSpace,      // calls that take space; others succeed
  kShort,        // a transfer moves a part
  kInterrupted,  // a transfer moves nothing
  kNoLink,       // a hard link is refused
  kFlipBit,      // a transfer says that it succeeded, with one bit wrong
  kLostWrite,    // a write says that it succeeded, and did nothing
};

class SimEnv final : public Env {
 public:
  explicit SimEnv(uint64_t seed = 1);
  ~SimEnv() override;

  // From the change number k (0, 1, …) on nothing happens any more and all
  // calls fail. A write that is change k is underway at the crash.
  void CrashAtChange(int64_t k);
  // Call number k fails in this way, and if `forever` all later ones.
  void FailAtCall(int64_t k, Fault fault, bool forever);
  // No more faults; the next call is number 0.
  void Reset();
  int64_t calls() const;
  int64_t changes() const;
  // How many calls failed by FailAtCall.
  int64_t failures() const;
  bool crashed() const;
  // Writes beyond this many bytes in all files fail.
  void SetCapacity(int64_t bytes);

  // Makes safe all that was done so far. A long test without it is slow: what
  // was not synced is kept one by one.
  void SyncAll();
  // The disk as it is found after a crash of this one.
  std::shared_ptr<SimEnv> AfterCrash(Loss loss, uint64_t seed) const;

  // Paths of all files.
  std::vector<std::string> Files() const;
  std::vector<char> Content(const std::string& path) const;
  void SetContent(const std::string& path, std::vector<char> content);

  Status Open(const std::string& path, OpenMode mode, Caching caching,
              std::unique_ptr<File>* file) override;
  Status NewEngine(int depth, std::unique_ptr<IoEngine>* engine) override;
  const char* engine_name() const override { return "simulated"; }
  Status List(const std::string& folder,
              std::vector<std::string>* names) override;
  Status MakeFolder(const std::string& path) override;
  Status RemoveFolder(const std::string& path) override;
  Status Remove(const std::string& path) override;
  Status Link(const std::string& from, const std::string& to) override;
  Status Rename(const std::string& from, const std::string& to) override;
  Status SyncFolder(const std::string& path) override;
  Status Lock(const std::string& path,
              std::unique_ptr<FileLock>* lock) override;
  uint64_t Random() override;
  int64_t ProcessId() const override { return 1; }

 private:
  friend class SimFile;
  friend class SimEngine;
  friend class SimLock;

  struct Node;
  using NodePtr = std::shared_ptr<Node>;
  // A write, or with no data a new size.
  struct Write {
    int64_t offset;
    int64_t size;  // of the file, afterwards
    std::vector<char> data;
  };
  struct Node {
    bool folder = false;
    // Files: what programs see, what is safe, and what lies between.
    std::vector<char> now, safe;
    std::vector<Write> pending;
    // Folders, likewise; the pending changes are in changes of the Env.
    std::map<std::string, NodePtr> names_now, names_safe;
  };
  // A name that goes, or one that comes, or both: a rename.
  struct NameChange {
    NodePtr from_folder;
    std::string from;
    NodePtr to_folder;
    std::string to;
    NodePtr node;
  };

  enum class Verdict { kGo, kFail, kUnderway };
  Verdict Count(bool changes, bool takes_space, bool is_io, int* error)
      ONEEMB_REQUIRES(mutex_);
  Status Begin(const char* operation, const std::string& path, bool changes,
               bool takes_space) ONEEMB_REQUIRES(mutex_);
  NodePtr Find(const std::string& path) const ONEEMB_REQUIRES(mutex_);
  NodePtr Parent(const std::string& path, std::string* name) const
      ONEEMB_REQUIRES(mutex_);
  void Change(NameChange change) ONEEMB_REQUIRES(mutex_);
  int64_t Used() const ONEEMB_REQUIRES(mutex_);
  static void Apply(const NameChange& change, bool safe);
  static void ApplyWrite(const Write& write, std::vector<char>* content);
  void Transfer(Io* io);
  void Move(Io* io, Node* node, int64_t bytes) ONEEMB_REQUIRES(mutex_);
  Status Resize(const std::string& path, Node* node, int64_t bytes,
                bool takes_space);
  Status SyncNode(const std::string& path, Node* node);
  static void MakeSafe(Node* node);
  static void Lose(Node* node, Loss loss, std::mt19937_64* random);

  mutable Mutex mutex_;
  std::mt19937_64 random_ ONEEMB_GUARDED_BY(mutex_);
  NodePtr root_ ONEEMB_GUARDED_BY(mutex_);
  std::vector<NameChange> name_changes_ ONEEMB_GUARDED_BY(mutex_);
  std::vector<std::string> locks_ ONEEMB_GUARDED_BY(mutex_);
  int64_t calls_ ONEEMB_GUARDED_BY(mutex_) = 0;
  int64_t changes_ ONEEMB_GUARDED_BY(mutex_) = 0;
  int64_t failures_ ONEEMB_GUARDED_BY(mutex_) = 0;
  int64_t crash_at_ ONEEMB_GUARDED_BY(mutex_) = -1;
  int64_t fail_at_ ONEEMB_GUARDED_BY(mutex_) = -1;
  int64_t capacity_ ONEEMB_GUARDED_BY(mutex_) = int64_t{1} << 40;
  Fault fault_ ONEEMB_GUARDED_BY(mutex_) = Fault::kIoError;
  bool forever_ ONEEMB_GUARDED_BY(mutex_) = false;
  bool crashed_ ONEEMB_GUARDED_BY(mutex_) = false;
  bool faulty_now_ ONEEMB_GUARDED_BY(mutex_) = false;
};

}  // namespace oneemb
