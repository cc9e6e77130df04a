// A Parallel over threads of its own, for tests.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

#include "cpu/parallel.h"

namespace oneemb {

class TestParallel final : public Parallel {
 public:
  explicit TestParallel(int64_t num_threads) : num_threads_(num_threads) {}

  int64_t num_threads() const override { return num_threads_; }

  void Run(int64_t n, const std::function<void(int64_t)>& task) override {
    std::atomic<int64_t> next{0};
    const auto work = [&] {
      for (int64_t i = next++; i < n; i = next++) task(i);
    };
    std::vector<std::thread> threads;
    for (int64_t t = 1; t < num_threads_; ++t) threads.emplace_back(work);
    work();
    for (std::thread& thread : threads) thread.join();
  }

 private:
  int64_t num_threads_;
};

}  // namespace oneemb
