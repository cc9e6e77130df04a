// A table in vectors, for tests of the kernels.
#pragma once

#include <cstdint>
#include <vector>

#include "core/counters.h"
#include "core/row_layout.h"
#include "cpu/lookup.h"
#include "cpu/row_update.h"
#include "cpu/table_ops.h"
#include "cpu/update.h"

namespace oneemb {

struct Batch {
  std::vector<uint32_t> words;  // two an id
  std::vector<int32_t> table_ids;
  std::vector<float> gradients;

  explicit Batch(const std::vector<uint64_t>& ids,
                 std::vector<int32_t> tables = {0})
      : table_ids(std::move(tables)) {
    for (const uint64_t id : ids) {
      words.push_back(static_cast<uint32_t>(id));
      words.push_back(static_cast<uint32_t>(id >> 32));
    }
  }

  int64_t size() const { return static_cast<int64_t>(words.size()) / 2; }

  IdsView View() const {
    return {words.data(),     2,
            size(),           size(),
            table_ids.data(), static_cast<int64_t>(table_ids.size())};
  }
};

// What a lookup left behind.
struct Seen {
  std::vector<float> activations;
  std::vector<int32_t> slots;
  std::vector<uint32_t> counts;
  uint64_t layout_version;
};

class TestTable {
 public:
  TestTable(int64_t dim, int64_t capacity, OptimizerKind kind,
            int32_t num_tables = 1)
      : dim_(static_cast<int32_t>(dim)),
        capacity_(capacity),
        configs_(
            static_cast<size_t>(num_tables),
            {InitializerKind::kUniform, -1.0F, 2.0F, -1.0F, 0.999F, 0, 0}) {
    rules_.keys = {num_tables, false, false, 0};
    rules_.embedding_dim = dim;
    rules_.optimizer.kind = kind;
    rules_.optimizer.eps = 1e-10;
    rules_.initializers = {7, 1, &dim_, configs_.data(), false};
    DispatchOptimizer(kind, [&](auto optimizer) {
      using Optimizer = decltype(optimizer);
      row_words_ = RowWords(dim, Optimizer::kStateFields, Optimizer::kRowWords);
    });
    index_.resize(static_cast<size_t>(NumBuckets(capacity)));
    rows_.resize(static_cast<size_t>(capacity * row_words_));
    clock_.resize(static_cast<size_t>(capacity));
  }
  TestTable(const TestTable&) = delete;
  TestTable& operator=(const TestTable&) = delete;

  TableView View() {
    return {{index_.data(), static_cast<int64_t>(index_.size())},
            rows_.data(),
            row_words_,
            capacity_,
            clock_.data(),
            counters_,
            &layout_version_};
  }

  TableRules& rules() { return rules_; }
  uint64_t counter(Counter c) const { return counters_[c]; }
  const std::vector<uint32_t>& rows() const { return rows_; }
  const std::vector<uint32_t>& clock() const { return clock_; }
  uint64_t layout_version() const { return layout_version_; }
  uint32_t step() const { return step_; }

  Seen Read(Parallel* parallel, const Batch& batch) {
    Seen seen;
    seen.activations.resize(static_cast<size_t>(batch.size() * dim_));
    seen.slots.resize(static_cast<size_t>(batch.size()));
    seen.counts.resize(kNumLookupCounts);
    seen.layout_version = layout_version_;
    Lookup(parallel, View(), rules_, batch.View(),
           {seen.activations.data(), FloatType::kFloat32, seen.slots.data(),
            seen.counts.data()});
    return seen;
  }

  void Train(Parallel* parallel, const std::vector<const Batch*>& batches,
             const std::vector<const Seen*>& seen, float learning_rate = 0.1F,
             bool apply = true) {
    UpdateArgs args{};
    for (size_t b = 0; b < batches.size(); ++b) {
      args.batches.push_back({batches[b]->View(), seen[b]->slots.data(),
                              &seen[b]->layout_version, seen[b]->counts.data(),
                              1, batches[b]->gradients.data()});
    }
    args.gradient_type = FloatType::kFloat32;
    args.learning_rate = learning_rate;
    args.grad_scale = 1.0F;
    args.apply = apply;
    args.step = &step_;
    args.generation = &generation_;
    Update(parallel, View(), rules_, args);
  }

 private:
  int32_t dim_;
  int64_t capacity_;
  int64_t row_words_ = 0;
  std::vector<InitializerConfig> configs_;
  TableRules rules_{};
  std::vector<Bucket> index_;
  std::vector<uint32_t> rows_;
  std::vector<uint32_t> clock_;
  uint64_t counters_[kNumCounters] = {};
  uint64_t layout_version_ = 0;
  uint32_t step_ = 0;
  uint32_t generation_ = 0;
};

}  // namespace oneemb
