// Every task is done once, whoever does it.
#include "store/crew.h"

#include <atomic>
#include <thread>
#include <vector>

#include "check.h"

namespace oneemb {
namespace {

// Runs so many tasks and counts how often each was done.
void CheckRun(Crew* crew, int64_t count) {
  std::vector<std::atomic<int>> done(static_cast<size_t>(count));
  crew->Run(count, [&](int64_t i) { ++done[static_cast<size_t>(i)]; });
  for (const std::atomic<int>& times : done) CHECK_EQ(times.load(), 1);
}

TEST(EveryTaskIsDoneOnce) {
  for (const int threads : {0, 1, 3}) {
    Crew crew(threads);
    CHECK_EQ(crew.size(), threads + 1);
    for (const int64_t count : {0, 1, 2, 7, 1000}) CheckRun(&crew, count);
  }
}

// Two tasks under way at once, of which the crew's ends long after the
// caller's.
TEST(TheCallerWaitsForTheOthers) {
  Crew crew(1);
  const std::thread::id caller = std::this_thread::get_id();
  std::atomic<int> begun{0};
  std::atomic<int> ended{0};
  crew.Run(2, [&](int64_t) {
    ++begun;
    while (begun.load() < 2) std::this_thread::yield();
    const bool is_caller = std::this_thread::get_id() == caller;
    while (!is_caller && ended.load() < 1) std::this_thread::yield();
    for (int i = 0; !is_caller && i < 10000; ++i) std::this_thread::yield();
    ++ended;
  });
  CHECK_EQ(ended.load(), 2);
}

TEST(RangesMakeUpTheWhole) {
  Crew crew(3);
  for (const int64_t items : {0, 1, 99, 100, 399, 400, 5000}) {
    std::vector<std::atomic<int>> done(static_cast<size_t>(items));
    std::atomic<int64_t> ranges{0};
    crew.ForRanges(items, 100, [&](int64_t begin, int64_t end) {
      ++ranges;
      for (int64_t i = begin; i < end; ++i) ++done[static_cast<size_t>(i)];
    });
    for (const std::atomic<int>& times : done) CHECK_EQ(times.load(), 1);
    CHECK_EQ(ranges.load(), crew.NumPieces(items, 100));
  }
}

TEST(SeveralMayHaveWorkAtATime) {
  Crew crew(2);
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 200; ++i) CheckRun(&crew, 1 + i % 20);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace oneemb
