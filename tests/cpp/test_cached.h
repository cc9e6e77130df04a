// A cached table over a Store on a simulated disk, for tests.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "store/table_store.h"
#include "test_store.h"
#include "test_table.h"
#include "tier/cached_ops.h"

namespace oneemb {

class TestCached {
 public:
  TestCached(int64_t dim, int64_t slots, OptimizerKind kind,
             const std::string& name, std::shared_ptr<Env> env,
             StoreKind store = StoreKind::kSsd)
      : name_(name),
        table_(dim, slots, kind),
        residency_(static_cast<size_t>(slots)) {
    const int64_t row_bytes = table_.View().row_words * 4;
    nonce_ = AttachStore(
        name, OpenStore(SmallOptions(std::move(env), row_bytes, store)), slots);
  }
  ~TestCached() { DetachStore(name_, nonce_); }
  TestCached(const TestCached&) = delete;
  TestCached& operator=(const TestCached&) = delete;

  // The table in one more execution of a compiled program.
  CachedTable Next() {
    ++run_;
    return Now();
  }
  CachedTable Now() {
    TableView view = table_.View();
    view.residency = residency_.data();
    return {view, table_.rules(), StoreOf(name_), nonce_, &generation_, run_};
  }

  TestTable& table() { return table_; }
  uint64_t counter(Counter c) const { return table_.counter(c); }
  uint32_t generation() const { return generation_; }
  std::vector<SlotResidency>& residency() { return residency_; }

  Seen Read(Parallel* parallel, const Batch& batch) {
    return ReadAs(parallel, batch, Now());
  }

  Seen ReadAs(Parallel* parallel, const Batch& batch,
              const CachedTable& cached) {
    Seen seen;
    const int64_t dim = table_.rules().embedding_dim;
    seen.activations.resize(static_cast<size_t>(batch.size() * dim));
    seen.slots.resize(static_cast<size_t>(batch.size()));
    seen.counts.resize(kNumLookupCounts);
    seen.layout_version = table_.layout_version();
    CHECK(LookupCached(parallel, cached, batch.View(),
                       {seen.activations.data(), FloatType::kFloat32,
                        seen.slots.data(), seen.counts.data()}));
    return seen;
  }

  void Train(Parallel* parallel, const Batch& batch, const Seen& seen) {
    UpdateArgs args{};
    args.batches.push_back({batch.View(), seen.slots.data(),
                            &seen.layout_version, seen.counts.data(), 1,
                            batch.gradients.data()});
    args.gradient_type = FloatType::kFloat32;
    args.learning_rate = 0.1F;
    args.grad_scale = 1.0F;
    args.apply = true;
    args.step = &step_;
    args.generation = &generation_;
    CHECK(UpdateCached(parallel, Now(), args));
  }

  void FlushAll(Parallel* parallel) {
    std::vector<SlotResidency> marks = residency_;
    uint32_t next = generation_;
    Flush(parallel, Now(), marks.data(), &next);
    residency_ = std::move(marks);
    generation_ = next;
  }

 private:
  const std::string name_;
  TestTable table_;
  std::vector<SlotResidency> residency_;
  uint64_t nonce_ = 0;
  uint32_t generation_ = 0;
  uint32_t step_ = 0;
  int64_t run_ = 0;
};

}  // namespace oneemb
