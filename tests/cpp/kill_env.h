// The files of this machine, for a process that kills itself at a chosen point
// of what it does to them.
#pragma once

#include <csignal>
#include <memory>
#include <string>
#include <vector>

#include "store/mutex.h"
#include "wrapped_env.h"

namespace oneemb {

// Where a process may die: calls that the protocol of snapshots is made of.
enum class KillPoint {
  kNone,
  kCreate,
  kMakeFolder,
  kLink,
  kRename,
  kSyncFolder,
  kRemove,
  kRemoveFolder,
};
constexpr KillPoint kAllKillPoints[] = {
    KillPoint::kCreate,      KillPoint::kMakeFolder, KillPoint::kLink,
    KillPoint::kRename,      KillPoint::kSyncFolder, KillPoint::kRemove,
    KillPoint::kRemoveFolder};

class KillEnv final : public WrappedEnv {
 public:
  // SIGKILL at call number `call` (0, 1, …) of `point`, before or after it.
  KillEnv(std::shared_ptr<Env> env, KillPoint point, uint64_t call, bool after)
      : WrappedEnv(std::move(env)), point_(point), call_(call), after_(after) {}

  Status Open(const std::string& path, OpenMode mode, Caching caching,
              std::unique_ptr<File>* file) override {
    const auto open = [&] { return env()->Open(path, mode, caching, file); };
    return mode == OpenMode::kCreate ? At(KillPoint::kCreate, open) : open();
  }
  Status MakeFolder(const std::string& path) override {
    return At(KillPoint::kMakeFolder, [&] { return env()->MakeFolder(path); });
  }
  Status RemoveFolder(const std::string& path) override {
    return At(KillPoint::kRemoveFolder,
              [&] { return env()->RemoveFolder(path); });
  }
  Status Remove(const std::string& path) override {
    return At(KillPoint::kRemove, [&] { return env()->Remove(path); });
  }
  Status Link(const std::string& from, const std::string& to) override {
    return At(KillPoint::kLink, [&] { return env()->Link(from, to); });
  }
  Status Rename(const std::string& from, const std::string& to) override {
    return At(KillPoint::kRename, [&] { return env()->Rename(from, to); });
  }
  Status SyncFolder(const std::string& path) override {
    return At(KillPoint::kSyncFolder, [&] { return env()->SyncFolder(path); });
  }

 private:
  template <class Call>
  Status At(KillPoint point, const Call& call) {
    bool now = false;
    if (point == point_) {
      const MutexLock lock(mutex_);
      now = calls_++ == call_;
    }
    if (now && !after_) (void)std::raise(SIGKILL);
    Status status = call();
    if (now) (void)std::raise(SIGKILL);
    return status;
  }

  const KillPoint point_;
  const uint64_t call_;
  const bool after_;
  Mutex mutex_;
  uint64_t calls_ ONEEMB_GUARDED_BY(mutex_) = 0;
};

}  // namespace oneemb
