// Threads that take a share of a large batch.
#pragma once

#include <sys/types.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace oneemb {

// Whoever has work for several does it himself, and the crew's threads join in
// as they have time: so it is done even where there are none, as in a fork of
// the process. Thread-safe.
class Crew {
 public:
  // With up to so many threads, as many as the system gives.
  explicit Crew(int threads);
  ~Crew();
  Crew(const Crew&) = delete;
  Crew& operator=(const Crew&) = delete;

  // One of each shared library, which does not end: a thread for every four
  // processors, one at least, and none where there is but one processor. The
  // others are those of XLA and of the caller.
  static Crew* Get();

  // How many can work at once: the threads and the caller.
  int size() const { return static_cast<int>(threads_.size()) + 1; }

  // Calls task(i) once for each 0 <= i < count, in any order and maybe at the
  // same time; returns when all are done. A task does not throw, and nothing
  // here takes memory.
  template <class Task>
  void Run(int64_t count, const Task& task) {
    Job job{[](const void* t, int64_t i) { (*static_cast<const Task*>(t))(i); },
            &task, count};
    RunJob(&job);
  }
  // Calls body(begin, end) for ranges of at least `grain` that make up
  // [0, items).
  template <class Body>
  void ForRanges(int64_t items, int64_t grain, const Body& body) {
    const int64_t pieces = NumPieces(items, grain);
    Run(pieces,
        [&](int64_t i) { body(items * i / pieces, items * (i + 1) / pieces); });
  }
  // How many ranges that are.
  int64_t NumPieces(int64_t items, int64_t grain) const {
    return std::max<int64_t>(1, std::min<int64_t>(size(), items / grain));
  }

 private:
  struct Job {
    void (*call)(const void* task, int64_t i);
    const void* task;
    const int64_t count;
    std::atomic<int64_t> next_task{0};
    int helpers = 0;          // threads that are at it; under mutex_
    Job* next_job = nullptr;  // under mutex_
  };

  void RunJob(Job* job);
  void Serve();
  Job* FindJob() const;
  void RemoveJob(const Job* job);
  static void Work(Job* job);

  const pid_t process_;
  std::mutex mutex_;
  std::condition_variable changed_;
  Job* jobs_ = nullptr;  // the last that came first
  bool stop_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace oneemb
