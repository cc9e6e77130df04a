#include "store/crew.h"

#include <unistd.h>

#include <system_error>
#include <utility>

namespace oneemb {

Crew::Crew(int threads) : process_(getpid()) {
  threads_.reserve(static_cast<size_t>(threads));
  bool more = true;
  for (int i = 0; i < threads && more; ++i) {
    try {
      threads_.emplace_back([this] { Serve(); });
    } catch (const std::system_error&) {
      more = false;
    }
  }
}

Crew::~Crew() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  changed_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

Crew* Crew::Get() {
  const auto processors = static_cast<int>(std::thread::hardware_concurrency());
  static auto* const crew =
      new Crew(std::max(processors / 4, processors > 1 ? 1 : 0));
  return crew;
}

void Crew::Work(Job* job) {
  for (;;) {
    const int64_t i = job->next_task.fetch_add(1);
    if (i >= job->count) return;
    job->call(job->task, i);
  }
}

// One with tasks left, or null.
Crew::Job* Crew::FindJob() const {
  Job* job = jobs_;
  while (job != nullptr && job->next_task.load() >= job->count) {
    job = job->next_job;
  }
  return job;
}

void Crew::RemoveJob(const Job* job) {
  Job** at = &jobs_;
  while (*at != job) at = &(*at)->next_job;
  *at = job->next_job;
}

void Crew::Serve() {
  std::unique_lock<std::mutex> lock(mutex_);
  while (!stop_) {
    Job* const job = FindJob();
    if (job == nullptr) {
      changed_.wait(lock);
      continue;
    }
    ++job->helpers;
    lock.unlock();
    Work(job);
    lock.lock();
    if (--job->helpers == 0) changed_.notify_all();
  }
}

void Crew::RunJob(Job* job) {
  // In a fork nobody is left, and a lock may have been held.
  const bool alone =
      job->count <= 1 || threads_.empty() || getpid() != process_;
  if (!alone) {
    const std::lock_guard<std::mutex> lock(mutex_);
    job->next_job = std::exchange(jobs_, job);
  }
  if (!alone) changed_.notify_all();
  Work(job);
  if (alone) return;
  std::unique_lock<std::mutex> lock(mutex_);
  RemoveJob(job);
  changed_.wait(lock, [&] { return job->helpers == 0; });
}

}  // namespace oneemb
