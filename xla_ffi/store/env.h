// The one seam between the store and the system: every file operation goes
// through an Env, so that a test can put a failing disk in the system's place.
//
// Calls here do what one system call does, and no more: a transfer may be short
// or interrupted. IoQueue (io_queue.h) and files.h finish what was begun.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "store/buffer_source.h"
#include "store/status.h"

namespace oneemb {

// Memory, offsets and sizes of transfers on a direct file are multiples of it.
constexpr int64_t kIoAlignment = 512;

enum class OpenMode {
  kRead,
  kCreate,  // for reading and writing; the file must not exist
};

// Whether transfers go through the system's page cache.
enum class Caching {
  kDirect,  // past it where the file system can (O_DIRECT)
  kCached,
};

// An open file. Thread-safe.
class File {
 public:
  explicit File(std::string path) : path_(std::move(path)) {}
  virtual ~File() = default;
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  // The name that it was opened by.
  const std::string& path() const { return path_; }
  // Whether transfers pass by the page cache and so must be aligned.
  virtual bool direct() const = 0;
  virtual Status Size(int64_t* bytes) const = 0;
  // Gives the file this size, with disk space reserved. kNoSpace may leave a
  // part of it allocated: remove the file.
  virtual Status Allocate(int64_t bytes) = 0;
  virtual Status Truncate(int64_t bytes) = 0;
  // After ok, data and size survive a loss of power. After an error nobody
  // knows what is on the disk, and a second call may lie.
  virtual Status Sync() = 0;
  virtual Status SetReadOnly() = 0;

 private:
  const std::string path_;
};

// One read or write. `result` is the number of bytes moved, or -errno.
struct Io {
  File* file = nullptr;
  bool write = false;
  int64_t offset = 0;
  char* data = nullptr;
  int64_t bytes = 0;
  int64_t result = 0;
  void* user = nullptr;  // the caller's own
  // The engine's own, so that it needs no memory for what is in flight.
  void* owner = nullptr;
  Io* next = nullptr;
};

// Transfers in flight. For one thread at a time, which waits for all that it
// started: no transfer may be in flight when the engine is destroyed.
class IoEngine {
 public:
  virtual ~IoEngine() = default;
  IoEngine() = default;
  IoEngine(const IoEngine&) = delete;
  IoEngine& operator=(const IoEngine&) = delete;

  // Begins a transfer; at most `depth` (NewEngine) may be in flight.
  virtual void Start(Io* io) = 0;
  // Waits for any transfer to end and hands it back. REQUIRES: one in flight.
  virtual Io* Next() = 0;
};

// Held until destroyed.
class FileLock {
 public:
  virtual ~FileLock() = default;
  FileLock() = default;
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

  // Whether the name still is that of the locked file: its folder may have been
  // deleted, and another be in its place.
  virtual bool InPlace() const = 0;
};

// Thread-safe.
class Env {
 public:
  virtual ~Env() = default;
  Env() = default;
  Env(const Env&) = delete;
  Env& operator=(const Env&) = delete;

  virtual Status Open(const std::string& path, OpenMode mode, Caching caching,
                      std::unique_ptr<File>* file) = 0;
  virtual Status NewEngine(int depth, std::unique_ptr<IoEngine>* engine) = 0;
  // How transfers are made: "io_uring", "threads" or "simulated".
  virtual const char* engine_name() const = 0;

  // Names in a folder, without "." and "..", sorted.
  virtual Status List(const std::string& folder,
                      std::vector<std::string>* names) = 0;
  virtual Status MakeFolder(const std::string& path) = 0;
  // The folder must be empty.
  virtual Status RemoveFolder(const std::string& path) = 0;
  virtual Status Remove(const std::string& path) = 0;
  virtual Status Link(const std::string& from, const std::string& to) = 0;
  // Atomic. `to` must not exist.
  virtual Status Rename(const std::string& from, const std::string& to) = 0;
  // Makes the names in a folder survive a loss of power.
  virtual Status SyncFolder(const std::string& path) = 0;
  // Creates the file if need be. kLocked, naming the owner's process id, while
  // anybody holds it, this process included.
  virtual Status Lock(const std::string& path,
                      std::unique_ptr<FileLock>* lock) = 0;

  virtual uint64_t Random() = 0;
  virtual int64_t ProcessId() const = 0;
};

// How the system's own Env makes transfers.
enum class Engine {
  kAuto,  // io_uring where the kernel allows it, else threads
  kUring,
  kThreads,
};

// The files of this machine. kUnavailable when io_uring was demanded and the
// kernel has none for us.
Status NewPosixEnv(Engine engine, std::shared_ptr<Env>* env);

}  // namespace oneemb
