// Locks that clang's thread-safety analysis can follow (-Wthread-safety, which
// clang-tidy runs as an error). Members say which lock protects them:
//   int64_t size_ ONEEMB_GUARDED_BY(mutex_);
#pragma once

#include <condition_variable>
#include <mutex>
#include <shared_mutex>

#if defined(__clang__)
#define ONEEMB_THREAD_ANNOTATION(x) __attribute__((x))
#else
#define ONEEMB_THREAD_ANNOTATION(x)
#endif

#define ONEEMB_GUARDED_BY(m) ONEEMB_THREAD_ANNOTATION(guarded_by(m))
#define ONEEMB_PT_GUARDED_BY(m) ONEEMB_THREAD_ANNOTATION(pt_guarded_by(m))
#define ONEEMB_REQUIRES(...) \
  ONEEMB_THREAD_ANNOTATION(requires_capability(__VA_ARGS__))
#define ONEEMB_REQUIRES_SHARED(...) \
  ONEEMB_THREAD_ANNOTATION(requires_shared_capability(__VA_ARGS__))
#define ONEEMB_EXCLUDES(...) \
  ONEEMB_THREAD_ANNOTATION(locks_excluded(__VA_ARGS__))

namespace oneemb {

// An exclusive lock.
class ONEEMB_THREAD_ANNOTATION(capability("mutex")) Mutex {
 public:
  void Lock() ONEEMB_THREAD_ANNOTATION(acquire_capability()) { m_.lock(); }
  void Unlock() ONEEMB_THREAD_ANNOTATION(release_capability()) { m_.unlock(); }

 private:
  friend class CondVar;
  std::mutex m_;
};

// Many readers or one writer.
class ONEEMB_THREAD_ANNOTATION(capability("shared_mutex")) SharedMutex {
 public:
  void Lock() ONEEMB_THREAD_ANNOTATION(acquire_capability()) { m_.lock(); }
  void Unlock() ONEEMB_THREAD_ANNOTATION(release_capability()) { m_.unlock(); }
  void LockShared() ONEEMB_THREAD_ANNOTATION(acquire_shared_capability()) {
    m_.lock_shared();
  }
  void UnlockShared() ONEEMB_THREAD_ANNOTATION(release_shared_capability()) {
    m_.unlock_shared();
  }

 private:
  std::shared_mutex m_;
};

class ONEEMB_THREAD_ANNOTATION(scoped_lockable) MutexLock {
 public:
  explicit MutexLock(Mutex& m) ONEEMB_THREAD_ANNOTATION(acquire_capability(m))
      : m_(m) {
    m_.Lock();
  }
  ~MutexLock() ONEEMB_THREAD_ANNOTATION(release_capability()) { m_.Unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex& m_;
};

class ONEEMB_THREAD_ANNOTATION(scoped_lockable) WriterLock {
 public:
  explicit WriterLock(SharedMutex& m)
      ONEEMB_THREAD_ANNOTATION(acquire_capability(m))
      : m_(m) {
    m_.Lock();
  }
  ~WriterLock() ONEEMB_THREAD_ANNOTATION(release_capability()) { m_.Unlock(); }
  WriterLock(const WriterLock&) = delete;
  WriterLock& operator=(const WriterLock&) = delete;

 private:
  SharedMutex& m_;
};

class ONEEMB_THREAD_ANNOTATION(scoped_lockable) ReaderLock {
 public:
  explicit ReaderLock(SharedMutex& m)
      ONEEMB_THREAD_ANNOTATION(acquire_shared_capability(m))
      : m_(m) {
    m_.LockShared();
  }
  ~ReaderLock() ONEEMB_THREAD_ANNOTATION(release_generic_capability()) {
    m_.UnlockShared();
  }
  ReaderLock(const ReaderLock&) = delete;
  ReaderLock& operator=(const ReaderLock&) = delete;

 private:
  SharedMutex& m_;
};

// Waits for something that a Mutex protects.
class CondVar {
 public:
  // May wake for no reason: call in a loop that tests what is waited for.
  void Wait(Mutex& m) ONEEMB_REQUIRES(m) {
    std::unique_lock<std::mutex> lock(m.m_, std::adopt_lock);
    condition_.wait(lock);
    (void)lock.release();
  }
  void NotifyAll() { condition_.notify_all(); }
  void NotifyOne() { condition_.notify_one(); }

 private:
  std::condition_variable condition_;
};

}  // namespace oneemb
