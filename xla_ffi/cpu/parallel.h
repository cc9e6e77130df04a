// How a kernel runs its tasks: on whatever threads the caller has.
#pragma once

#include <cstdint>
#include <functional>

namespace oneemb {

// Runs tasks. One object serves one call at a time.
class Parallel {
 public:
  virtual ~Parallel() = default;
  Parallel() = default;
  Parallel(const Parallel&) = delete;
  Parallel& operator=(const Parallel&) = delete;

  // How many tasks are worth making; at least 1.
  virtual int64_t num_threads() const = 0;

  // Calls task(i) once for every 0 <= i < n, in any order, maybe at the same
  // time; returns when all are done. Tasks must not throw.
  virtual void Run(int64_t n, const std::function<void(int64_t)>& task) = 0;
};

// The range of items that task i of n has.
struct Range {
  int64_t begin;
  int64_t end;
};

inline Range TaskRange(int64_t items, int64_t task, int64_t num_tasks) {
  const int64_t share = items / num_tasks;
  const int64_t rest = items % num_tasks;
  const int64_t begin = task * share + (task < rest ? task : rest);
  return {begin, begin + share + (task < rest ? 1 : 0)};
}

// The same for blocks of items, none of which two tasks share.
inline Range TaskBlocks(int64_t items, int64_t block, int64_t task,
                        int64_t num_tasks) {
  const int64_t blocks = (items + block - 1) / block;
  const Range range = TaskRange(blocks, task, num_tasks);
  const auto end = [&](int64_t b) { return b == blocks ? items : b * block; };
  return {end(range.begin), end(range.end)};
}

// Splits `items` into ranges of at least `grain` and runs body(range, task) on
// each. `tasks_per_thread` above 1 evens out ranges of unequal work.
inline int64_t NumTasks(const Parallel& parallel, int64_t items, int64_t grain,
                        int64_t tasks_per_thread = 1) {
  const int64_t most = parallel.num_threads() * tasks_per_thread;
  const int64_t useful = (items + grain - 1) / grain;
  return useful < 1 ? 1 : (useful < most ? useful : most);
}

}  // namespace oneemb
