// The two ways in which PosixEnv makes transfers.
#pragma once

#include <unistd.h>

#include <memory>
#include <string>
#include <utility>

#include "store/env.h"

namespace oneemb {

// Closes a descriptor, unless it is released before.
class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  int get() const { return fd_; }
  int release() { return std::exchange(fd_, -1); }

 private:
  int fd_;
};

// A file with a descriptor, as both engines need it.
class PosixFile : public File {
 public:
  // Takes the descriptor over, in the end: an exception before leaves it.
  PosixFile(const std::string& path, Descriptor* descriptor)
      : File(path), descriptor_(descriptor->release()) {}
  int fd() const { return descriptor_.get(); }

 private:
  const Descriptor descriptor_;
};

// io_uring by raw system calls. kUnavailable where the kernel or a sandbox does
// not allow it, or where it lacks plain reads and writes (before 5.6).
Status NewUringEngine(int depth, std::unique_ptr<IoEngine>* engine);

// Threads that call pread and pwrite, shared by all engines made from them.
class IoThreads {
 public:
  virtual ~IoThreads() = default;
  IoThreads() = default;
  IoThreads(const IoThreads&) = delete;
  IoThreads& operator=(const IoThreads&) = delete;

  // The engine must not outlive this object.
  virtual Status NewEngine(std::unique_ptr<IoEngine>* engine) = 0;
};
// Starts its threads when the first engine is made.
std::unique_ptr<IoThreads> NewIoThreads(int num_threads);

}  // namespace oneemb
