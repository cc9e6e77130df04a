// Transfers by a pool of threads. It reaches the IOPS of io_uring at about
// three times the processor time.
#include <sys/types.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <thread>

#include "store/mutex.h"
#include "store/posix_engine.h"

namespace oneemb {
namespace {

class ThreadEngine;

// First in, first out, by the links of the transfers themselves: a thread that
// cannot get memory must not be the end of the process.
class IoList {
 public:
  bool empty() const { return first_ == nullptr; }

  void Push(Io* io) {
    io->next = nullptr;
    (empty() ? first_ : last_->next) = io;
    last_ = io;
  }

  Io* Pop() {
    Io* const io = first_;
    first_ = io->next;
    return io;
  }

 private:
  Io* first_ = nullptr;
  Io* last_ = nullptr;
};

class Pool final : public IoThreads {
 public:
  explicit Pool(int num_threads) : num_threads_(num_threads) {}
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  ~Pool() override {
    {
      const MutexLock lock(mutex_);
      stopping_ = true;
      work_.NotifyAll();
    }
    for (std::thread& thread : threads_) thread.join();
  }

  Status NewEngine(std::unique_ptr<IoEngine>* engine) override;

  void Add(ThreadEngine* owner, Io* io) {
    io->owner = owner;
    const MutexLock lock(mutex_);
    queue_.Push(io);
    work_.NotifyOne();
  }

 private:
  Status StartThreads();
  void Run();

  const int num_threads_;
  Mutex start_mutex_;
  std::vector<std::thread> threads_;  // written under start_mutex_
  Mutex mutex_;
  CondVar work_;
  IoList queue_ ONEEMB_GUARDED_BY(mutex_);
  bool stopping_ ONEEMB_GUARDED_BY(mutex_) = false;
};

class ThreadEngine final : public IoEngine {
 public:
  explicit ThreadEngine(Pool* pool) : pool_(pool) {}

  void Start(Io* io) override { pool_->Add(this, io); }

  Io* Next() override {
    const MutexLock lock(mutex_);
    while (done_.empty()) ended_.Wait(mutex_);
    return done_.Pop();
  }

  // Notifies under the lock: once Next has returned, the engine may go.
  void Done(Io* io) {
    const MutexLock lock(mutex_);
    done_.Push(io);
    ended_.NotifyOne();
  }

 private:
  Pool* const pool_;
  Mutex mutex_;
  CondVar ended_;
  IoList done_ ONEEMB_GUARDED_BY(mutex_);
};

Status Pool::StartThreads() {
  const MutexLock lock(start_mutex_);
  try {
    while (static_cast<int>(threads_.size()) < num_threads_) {
      threads_.emplace_back([this] { Run(); });
    }
  } catch (const std::system_error& error) {
    if (threads_.empty()) {
      return {StatusKind::kUnavailable,
              std::string("starting I/O threads: ") + error.what()};
    }
  }
  return {};
}

Status Pool::NewEngine(std::unique_ptr<IoEngine>* engine) {
  ONEEMB_RETURN_IF_ERROR(StartThreads());
  *engine = std::make_unique<ThreadEngine>(this);
  return {};
}

void Transfer(Io* io) {
  const int fd = static_cast<PosixFile*>(io->file)->fd();
  const auto bytes = static_cast<size_t>(io->bytes);
  const ssize_t moved = io->write ? pwrite(fd, io->data, bytes, io->offset)
                                  : pread(fd, io->data, bytes, io->offset);
  io->result = moved < 0 ? -errno : moved;
}

void Pool::Run() {
  for (;;) {
    Io* io = nullptr;
    {
      const MutexLock lock(mutex_);
      while (queue_.empty() && !stopping_) work_.Wait(mutex_);
      if (queue_.empty()) return;
      io = queue_.Pop();
    }
    Transfer(io);
    static_cast<ThreadEngine*>(io->owner)->Done(io);
  }
}

}  // namespace

std::unique_ptr<IoThreads> NewIoThreads(int num_threads) {
  return std::make_unique<Pool>(num_threads);
}

}  // namespace oneemb
