// The files of this machine.
#include <dirent.h>
#include <fcntl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>

#include "store/env.h"
#include "store/file_lock.h"
#include "store/posix_engine.h"

#ifndef O_DIRECT
#define O_DIRECT 0
#endif

namespace oneemb {
namespace {

// Enough to keep a disk busy; idle threads cost next to nothing.
constexpr int kIoThreads = 32;

class OpenFile final : public PosixFile {
 public:
  OpenFile(const std::string& path, Descriptor* descriptor, bool direct)
      : PosixFile(path, descriptor), direct_(direct) {}

  bool direct() const override { return direct_; }

  Status Size(int64_t* bytes) const override {
    struct stat info{};
    ONEEMB_RETURN_IF_ERROR(Result("stat", fstat(fd(), &info)));
    *bytes = info.st_size;
    return {};
  }

  Status Allocate(int64_t bytes) override {
    int error = 0;
    do {
      error = posix_fallocate(fd(), 0, bytes);
    } while (error == EINTR);
    if (error == 0) return {};
    const std::string wanted =
        "fallocate of " + std::to_string(bytes) + " bytes for";
    return SystemError(wanted.c_str(), path(), error);
  }

  Status Truncate(int64_t bytes) override {
    return Result("ftruncate", ftruncate(fd(), bytes));
  }

  Status Sync() override { return Result("fsync", fsync(fd())); }

  Status SetReadOnly() override { return Result("fchmod", fchmod(fd(), 0444)); }

 private:
  Status Result(const char* operation, int result) const {
    return result == 0 ? Status() : SystemError(operation, path(), errno);
  }

  const bool direct_;
};

// A table of a billion rows is thousands of files; the usual soft limit of a
// process is 1024. Raises it to what the administrator allows.
bool RaiseFileLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return false;
  if (limit.rlim_cur >= limit.rlim_max) return false;
  limit.rlim_cur = limit.rlim_max;
  return setrlimit(RLIMIT_NOFILE, &limit) == 0;
}

int OpenDescriptor(const std::string& path, int flags) {
  constexpr int kPermissions = 0644;
  int fd = open(path.c_str(), flags | O_CLOEXEC, kPermissions);
  if (fd < 0 && errno == EMFILE && RaiseFileLimit()) {
    fd = open(path.c_str(), flags | O_CLOEXEC, kPermissions);
  }
  return fd;
}

class PosixEnv final : public Env {
 public:
  // `falls_back`: threads do where the kernel has no memory for a ring.
  PosixEnv(bool uring, bool falls_back)
      : uring_(uring), falls_back_(falls_back) {}

  Status Open(const std::string& path, OpenMode mode, Caching caching,
              std::unique_ptr<File>* file) override {
    const int flags =
        mode == OpenMode::kRead ? O_RDONLY : O_RDWR | O_CREAT | O_EXCL;
    const int direct = caching == Caching::kDirect ? O_DIRECT : 0;
    int fd = OpenDescriptor(path, flags | direct);
    bool is_direct = direct != 0;
    if (fd < 0 && errno == EINVAL && is_direct) {
      // No O_DIRECT here. Some systems have created the file by then.
      const int again = flags & ~O_EXCL;
      fd = OpenDescriptor(path, again);
      is_direct = false;
      if (fd >= 0) (void)posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM);
    }
    if (fd < 0) return SystemError("open", path, errno);
    Descriptor descriptor(fd);
    *file = std::make_unique<OpenFile>(path, &descriptor, is_direct);
    return {};
  }

  Status NewEngine(int depth, std::unique_ptr<IoEngine>* engine) override {
    if (uring_) {
      Status status = NewUringEngine(depth, engine);
      if (status.ok() || !falls_back_) return status;
    }
    return threads_->NewEngine(engine);
  }

  const char* engine_name() const override {
    return uring_ ? "io_uring" : "threads";
  }

  Status List(const std::string& folder,
              std::vector<std::string>* names) override;

  Status MakeFolder(const std::string& path) override {
    return Result("mkdir", path, mkdir(path.c_str(), 0755));
  }
  Status RemoveFolder(const std::string& path) override {
    return Result("rmdir", path, rmdir(path.c_str()));
  }
  Status Remove(const std::string& path) override {
    return Result("unlink", path, unlink(path.c_str()));
  }
  Status Link(const std::string& from, const std::string& to) override {
    return Result("link", from + " to " + to, link(from.c_str(), to.c_str()));
  }

  Status Rename(const std::string& from, const std::string& to) override {
    const std::string both = from + " to " + to;
    if (renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(),
                  RENAME_NOREPLACE) == 0) {
      return {};
    }
    if (errno != EINVAL && errno != ENOSYS) {
      return SystemError("rename", both, errno);
    }
    // A file system without the flag. The directory lock keeps others away
    // between the two calls.
    if (access(to.c_str(), F_OK) == 0) {
      return SystemError("rename", both, EEXIST);
    }
    return Result("rename", both, rename(from.c_str(), to.c_str()));
  }

  Status SyncFolder(const std::string& path) override {
    const Descriptor folder(OpenDescriptor(path, O_RDONLY | O_DIRECTORY));
    if (folder.get() < 0) return SystemError("open", path, errno);
    return Result("fsync", path, fsync(folder.get()));
  }

  Status Lock(const std::string& path,
              std::unique_ptr<FileLock>* lock) override {
    return LockFile(path, lock);
  }

  uint64_t Random() override {
    uint64_t word = 0;
    // 8 bytes come whole or, early at boot, not yet.
    while (getrandom(&word, sizeof(word), 0) != sizeof(word)) continue;
    return word;
  }

  int64_t ProcessId() const override { return getpid(); }

 private:
  static Status Result(const char* operation, const std::string& path,
                       int result) {
    return result == 0 ? Status() : SystemError(operation, path, errno);
  }

  const bool uring_;
  const bool falls_back_;
  const std::unique_ptr<IoThreads> threads_ = NewIoThreads(kIoThreads);
};

Status PosixEnv::List(const std::string& folder,
                      std::vector<std::string>* names) {
  const std::unique_ptr<DIR, int (*)(DIR*)> stream(opendir(folder.c_str()),
                                                   &closedir);
  if (stream == nullptr) return SystemError("opendir", folder, errno);
  names->clear();
  errno = 0;
  // One stream is read by one thread.
  while (const dirent* entry =
             readdir(stream.get())) {  // NOLINT(concurrency-mt-unsafe)
    const std::string name(entry->d_name);
    if (name != "." && name != "..") names->push_back(name);
    errno = 0;
  }
  if (errno != 0) return SystemError("readdir", folder, errno);
  std::sort(names->begin(), names->end());
  return {};
}

}  // namespace

Status NewPosixEnv(Engine engine, std::shared_ptr<Env>* env) {
  bool uring = false;
  if (engine != Engine::kThreads) {
    std::unique_ptr<IoEngine> trial;
    const Status status = NewUringEngine(1, &trial);
    if (!status.ok() && engine == Engine::kUring) return status;
    uring = status.ok();
  }
  *env = std::make_shared<PosixEnv>(uring, engine == Engine::kAuto);
  return {};
}

}  // namespace oneemb
