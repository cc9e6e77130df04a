#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>

#include "cpu/ffi_util.h"

namespace oneemb {
namespace {

std::atomic<int64_t> wanted_threads{0};

// Outlives the call: a helper that starts late must still find it.
struct SharedRun {
  int64_t num_tasks = 0;
  // Valid while tasks are left to take.
  const std::function<void(int64_t)>* task = nullptr;
  std::atomic<int64_t> next{0};
  std::mutex mutex;
  std::condition_variable all_done;
  int64_t done = 0;  // under mutex
};

// Takes tasks until none are left.
void Work(SharedRun* run) {
  const DefaultFloats floats;
  int64_t finished = 0;
  for (;;) {
    const int64_t i = run->next.fetch_add(1);
    if (i >= run->num_tasks) break;
    (*run->task)(i);
    ++finished;
  }
  if (finished == 0) return;
  const std::lock_guard<std::mutex> lock(run->mutex);
  run->done += finished;
  if (run->done == run->num_tasks) run->all_done.notify_one();
}

}  // namespace

void SetNumThreads(int64_t num_threads) { wanted_threads = num_threads; }

FfiParallel::FfiParallel(xla::ffi::ThreadPool pool) : pool_(pool) {
  const int64_t wanted = wanted_threads;
  num_threads_ = wanted > 0 ? wanted : std::max<int64_t>(1, pool.num_threads());
}

// The caller works too and waits only for tasks that somebody has taken, so a
// pool that is busy elsewhere slows the call down but cannot stop it.
void FfiParallel::Run(int64_t n, const std::function<void(int64_t)>& task) {
  if (n <= 0) return;
  if (n == 1 || num_threads_ == 1) {
    for (int64_t i = 0; i < n; ++i) task(i);
    return;
  }
  const auto run = std::make_shared<SharedRun>();
  run->num_tasks = n;
  run->task = &task;
  const int64_t helpers = std::min(n, num_threads_) - 1;
  for (int64_t h = 0; h < helpers; ++h) {
    pool_.Schedule([run] { Work(run.get()); });
  }
  Work(run.get());
  std::unique_lock<std::mutex> lock(run->mutex);
  run->all_done.wait(lock, [&] { return run->done == run->num_tasks; });
}

}  // namespace oneemb
