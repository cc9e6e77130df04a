// The two ways in which PosixEnv makes transfers.
#pragma once

#include <memory>

#include "store/env.h"

namespace oneemb {

// A file with a descriptor, as both engines need it.
class PosixFile : public File {
 public:
  PosixFile(std::string path, int fd) : File(std::move(path)), fd_(fd) {}
  int fd() const { return fd_; }

 private:
  const int fd_;
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
