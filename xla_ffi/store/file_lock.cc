#include "store/file_lock.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "store/posix_engine.h"

namespace oneemb {
namespace {

// Device and inode: the same file by any name.
using FileId = std::pair<dev_t, ino_t>;

// The locks that this process holds, and their descriptors. Across a fork the
// child closes its copies, else it would keep the folder locked when the
// parent is gone.
class HeldLocks {
 public:
  static HeldLocks& Get() {
    // Never destroyed: a Store may outlive static destructors.
    static HeldLocks* const held = new HeldLocks;
    return *held;
  }

  std::mutex& mutex() { return mutex_; }
  // All under mutex().
  bool Has(FileId id) const { return descriptors_.count(id) != 0; }
  void Add(FileId id, int fd) { descriptors_[id] = fd; }

  void Release(FileId id, int fd) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto it = descriptors_.find(id);
    if (it == descriptors_.end() || it->second != fd) return;  // after a fork
    descriptors_.erase(it);
    // Closing alone would leave the lock to a child that is just being forked.
    (void)flock(fd, LOCK_UN);
    close(fd);
  }

 private:
  HeldLocks() {
    // Without the handlers only a forked child's tidiness suffers.
    (void)pthread_atfork([] { Get().mutex_.lock(); },
                         [] { Get().mutex_.unlock(); }, [] { Get().Drop(); });
  }

  void Drop() {
    for (const auto& [id, fd] : descriptors_) close(fd);
    descriptors_.clear();
    mutex_.unlock();
  }

  std::mutex mutex_;
  std::map<FileId, int> descriptors_;
};

class HeldLock final : public FileLock {
 public:
  HeldLock(std::string path, FileId id) : path_(std::move(path)), id_(id) {}
  ~HeldLock() override {
    if (fd_ >= 0) HeldLocks::Get().Release(id_, fd_);
  }
  HeldLock(const HeldLock&) = delete;
  HeldLock& operator=(const HeldLock&) = delete;

  void Hold(int fd) { fd_ = fd; }

  bool InPlace() const override {
    struct stat info{};
    return stat(path_.c_str(), &info) == 0 &&
           FileId{info.st_dev, info.st_ino} == id_;
  }

 private:
  const std::string path_;
  const FileId id_;
  int fd_ = -1;
};

std::string OwnerOf(int fd) {
  std::array<char, 32> text{};
  const ssize_t bytes = pread(fd, text.data(), text.size() - 1, 0);
  if (bytes <= 0) return "another process";
  return "process " + std::string(text.data());
}

Status Locked(const std::string& path, const std::string& owner) {
  return {StatusKind::kLocked, path + " is locked by " + owner +
                                   ": one Store owns a folder at a time; "
                                   "close that one first"};
}

// Puts this process's id into the file, for the message of the next opener.
Status WriteOwner(int fd, const std::string& path) {
  const std::string text = std::to_string(getpid());
  if (ftruncate(fd, 0) != 0 || pwrite(fd, text.data(), text.size(), 0) < 0) {
    // A full disk must not keep anybody from reading their rows.
    if (errno != ENOSPC) return SystemError("write", path, errno);
  }
  return {};
}

// Locks an open file. REQUIRES: the mutex of HeldLocks is held.
Status LockDescriptor(const std::string& path, int fd, FileId* id) {
  struct stat info{};
  if (fstat(fd, &info) != 0) return SystemError("stat", path, errno);
  *id = {info.st_dev, info.st_ino};
  if (HeldLocks::Get().Has(*id)) {
    return Locked(path, "this process (" + std::to_string(getpid()) + ")");
  }
  if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
    if (errno == EWOULDBLOCK) return Locked(path, OwnerOf(fd));
    return SystemError("flock", path, errno);
  }
  return WriteOwner(fd, path);
}

}  // namespace

Status LockFile(const std::string& path, std::unique_ptr<FileLock>* lock) {
  HeldLocks& held = HeldLocks::Get();
  const std::lock_guard<std::mutex> guard(held.mutex());
  Descriptor fd(open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644));
  if (fd.get() < 0) return SystemError("open", path, errno);
  FileId id;
  ONEEMB_RETURN_IF_ERROR(LockDescriptor(path, fd.get(), &id));
  auto fresh = std::make_unique<HeldLock>(path, id);
  held.Add(id, fd.get());
  fresh->Hold(fd.release());
  *lock = std::move(fresh);
  return {};
}

}  // namespace oneemb
