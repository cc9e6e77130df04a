// What a plain kernel reaches on this machine, for benchmarks/native.py.
//
// Two things, both over rows [embedding | optimizer state] of floats in one
// array, with ids that are row numbers:
//  * a hand-written embedding step (gather; group, sum, apply) with nothing to
//    hash, insert, count or check: the yardstick for a library's own kernels;
//  * the traffic alone (copy rows out; read and write each row once while the
//    gradients stream by), which no step that moves these bytes can beat.
//
// Called from one thread at a time; each call runs on all threads of the pool
// and returns when they are done. Pointers are not checked.

#include <immintrin.h>
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace {

constexpr int kLane = 8;           // floats in a vector register
constexpr int kBlock = 8;          // registers that hold a part of a row's sum
constexpr int kMaxBuckets = 2048;  // of ids: their cursors stay in the L1 cache
constexpr int kChunk = 16;         // buckets that a thread takes at once
constexpr int kAhead = 12;         // entries between a prefetch and its use
constexpr size_t kHugePage = size_t{2} << 20;
constexpr int64_t kStreamBytes = int64_t{16} << 20;  // larger goes past caches

// Runs one function on every thread, the caller's included.
class Pool {
 public:
  explicit Pool(int threads) : threads_(threads) {
    for (int t = 1; t < threads; ++t) {
      workers_.emplace_back([this, t] { Work(t); });
    }
  }

  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
      ++round_;
    }
    start_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return threads_; }

  void Run(const std::function<void(int)>& body) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      body_ = &body;
      pending_ = threads_ - 1;
      ++round_;
    }
    start_.notify_all();
    body(0);
    std::unique_lock<std::mutex> lock(mutex_);
    done_.wait(lock, [this] { return pending_ == 0; });
  }

  // All threads of one Run meet here. A stage lasts a millisecond or less, so
  // waiting costs less than sleeping; the yield is for a busy machine.
  void Barrier() {
    const int epoch = epoch_.load();
    if (arrived_.fetch_add(1) == threads_ - 1) {
      arrived_.store(0);
      epoch_.fetch_add(1);
      return;
    }
    for (int spin = 0; epoch_.load() == epoch; ++spin) {
      if (spin % 256 == 255) std::this_thread::yield();
      _mm_pause();
    }
  }

 private:
  void Work(int t) {
    int64_t seen = 0;
    while (true) {
      const std::function<void(int)>* body = nullptr;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        start_.wait(lock, [&] { return round_ != seen; });
        seen = round_;
        if (stop_) return;
        body = body_;
      }
      (*body)(t);
      std::lock_guard<std::mutex> lock(mutex_);
      if (--pending_ == 0) done_.notify_one();
    }
  }

  const int threads_;
  std::mutex mutex_;
  std::condition_variable start_;
  std::condition_variable done_;
  const std::function<void(int)>* body_ = nullptr;
  int pending_ = 0;
  int64_t round_ = 0;
  bool stop_ = false;
  std::atomic<int> arrived_{0};
  std::atomic<int> epoch_{0};
  std::vector<std::thread> workers_;
};

struct Entry {
  uint32_t id;
  uint32_t position;
};

struct Hyper {
  float rate;
  float eps;
  float keep1;  // Adam: the part of the first moment that stays
  float keep2;
};

struct Engine {
  explicit Engine(int threads) : pool(threads) {}
  Pool pool;
  std::vector<Entry> scattered;
  std::vector<Entry> sorted;
  std::vector<uint32_t> cursors;  // [thread][bucket]
  std::vector<uint32_t> starts;   // [bucket + 1]
};

enum class Optimizer { kSgd = 0, kAdagrad = 1, kAdam = 2 };

void AdviseHugePages(void* data, int64_t bytes) {
  const auto address = reinterpret_cast<uintptr_t>(data);
  const uintptr_t first = (address + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t last = (address + bytes) / kHugePage * kHugePage;
  if (first < last) {
    madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
  }
}

int Split(int64_t n, int t, int threads) {
  return static_cast<int>(n * t / threads);
}

// Inlined by force: g++ may take a function that only prefetches for one
// without effect, and drop the call.
[[gnu::always_inline]] inline void PrefetchRow(const float* row, int floats) {
  for (int c = 0; c < floats; c += 16) {
    _mm_prefetch(reinterpret_cast<const char*>(row + c), _MM_HINT_T0);
  }
}

template <int kDim, bool kStream>
void GatherRange(const float* rows, int64_t stride, const int32_t* ids,
                 int begin, int end, int64_t ahead, float* out) {
  for (int i = begin; i < end; ++i) {
    if (i + ahead < end) PrefetchRow(rows + ids[i + ahead] * stride, kDim);
    const float* row = rows + ids[i] * stride;
    float* to = out + int64_t{i} * kDim;
    for (int c = 0; c < kDim; c += kLane) {
      const __m256 x = _mm256_load_ps(row + c);
      if (kStream) {
        _mm256_stream_ps(to + c, x);
      } else {
        _mm256_store_ps(to + c, x);
      }
    }
  }
  if (kStream) _mm_sfence();
}

template <int kDim>
void Gather(Pool& pool, const float* rows, int64_t stride, const int32_t* ids,
            int64_t n, int64_t ahead, bool stream, float* out) {
  pool.Run([&](int t) {
    const int begin = Split(n, t, pool.threads());
    const int end = Split(n, t + 1, pool.threads());
    if (stream) {
      GatherRange<kDim, true>(rows, stride, ids, begin, end, ahead, out);
    } else {
      GatherRange<kDim, false>(rows, stride, ids, begin, end, ahead, out);
    }
  });
}

// One vector of an optimizer step; `w` is the row at this column.
template <Optimizer kOptimizer>
void Apply(__m256 g, float* w, int64_t dim, const Hyper& h) {
  const __m256 rate = _mm256_set1_ps(h.rate);
  if (kOptimizer == Optimizer::kSgd) {
    _mm256_store_ps(w, _mm256_fnmadd_ps(rate, g, _mm256_load_ps(w)));
    return;
  }
  const __m256 eps = _mm256_set1_ps(h.eps);
  __m256 upper = g;
  __m256 second = _mm256_setzero_ps();
  if (kOptimizer == Optimizer::kAdagrad) {
    second = _mm256_fmadd_ps(g, g, _mm256_load_ps(w + dim));
    _mm256_store_ps(w + dim, second);
  } else {
    const __m256 m = _mm256_load_ps(w + dim);
    const __m256 v = _mm256_load_ps(w + 2 * dim);
    const __m256 keep1 = _mm256_set1_ps(h.keep1);
    const __m256 keep2 = _mm256_set1_ps(h.keep2);
    upper = _mm256_fmadd_ps(keep1, _mm256_sub_ps(m, g), g);
    const __m256 square = _mm256_mul_ps(g, g);
    second = _mm256_fmadd_ps(keep2, _mm256_sub_ps(v, square), square);
    _mm256_store_ps(w + dim, upper);
    _mm256_store_ps(w + 2 * dim, second);
  }
  const __m256 lower = _mm256_add_ps(_mm256_sqrt_ps(second), eps);
  const __m256 move = _mm256_div_ps(_mm256_mul_ps(rate, upper), lower);
  _mm256_store_ps(w, _mm256_sub_ps(_mm256_load_ps(w), move));
}

// Sums the gradients of one row in batch order, and applies the sum.
template <int kDim, Optimizer kOptimizer>
void SumAndApply(const Entry* first, const Entry* last, const float* grads,
                 float* row, const Hyper& h) {
  constexpr int kVectors = std::min(kBlock, kDim / kLane);
  for (int c = 0; c < kDim; c += kVectors * kLane) {
    __m256 sum[kVectors];
    const float* g = grads + int64_t{first->position} * kDim + c;
    for (int v = 0; v < kVectors; ++v) sum[v] = _mm256_loadu_ps(g + v * kLane);
    for (const Entry* e = first + 1; e < last; ++e) {
      g = grads + int64_t{e->position} * kDim + c;
      for (int v = 0; v < kVectors; ++v) {
        sum[v] = _mm256_add_ps(sum[v], _mm256_loadu_ps(g + v * kLane));
      }
    }
    for (int v = 0; v < kVectors; ++v) {
      Apply<kOptimizer>(sum[v], row + c + v * kLane, kDim, h);
    }
  }
}

template <int kDim, Optimizer kOptimizer>
void ApplyRange(const Entry* entries, int64_t n, const float* grads,
                float* rows, int64_t stride, const Hyper& h) {
  for (int64_t i = 0; i < n;) {
    int64_t end = i;
    for (; end < n && entries[end].id == entries[i].id; ++end) {
      if (end + kAhead >= n) continue;
      const Entry& next = entries[end + kAhead];
      PrefetchRow(grads + int64_t{next.position} * kDim, kDim);
      if (next.id != entries[end + kAhead - 1].id) {
        PrefetchRow(rows + next.id * stride, static_cast<int>(stride));
      }
    }
    SumAndApply<kDim, kOptimizer>(entries + i, entries + end, grads,
                                  rows + entries[i].id * stride, h);
    i = end;
  }
}

// Orders one bucket by id; entries with one id stay in batch order.
void SortBucket(const Entry* from, int64_t n, uint32_t base, uint32_t width,
                uint32_t* counts, Entry* to) {
  std::memset(counts, 0, (width + 1) * sizeof(*counts));
  for (int64_t i = 0; i < n; ++i) ++counts[from[i].id - base + 1];
  for (uint32_t r = 0; r < width; ++r) counts[r + 1] += counts[r];
  for (int64_t i = 0; i < n; ++i) to[counts[from[i].id - base]++] = from[i];
}

// Cuts the batch into buckets of neighbouring ids, each in batch order.
void Scatter(Engine& engine, const int32_t* ids, int64_t n, int shift,
             int buckets, int t) {
  const int threads = engine.pool.threads();
  const int begin = Split(n, t, threads);
  const int end = Split(n, t + 1, threads);
  uint32_t* mine = engine.cursors.data() + int64_t{t} * buckets;
  std::fill(mine, mine + buckets, 0U);
  for (int i = begin; i < end; ++i) ++mine[ids[i] >> shift];
  engine.pool.Barrier();
  if (t == 0) {
    uint32_t total = 0;
    for (int b = 0; b < buckets; ++b) {
      engine.starts[b] = total;
      for (int u = 0; u < threads; ++u) {
        uint32_t& cursor = engine.cursors[int64_t{u} * buckets + b];
        total += std::exchange(cursor, total);
      }
    }
    engine.starts[buckets] = total;
  }
  engine.pool.Barrier();
  for (int i = begin; i < end; ++i) {
    engine.scattered[mine[ids[i] >> shift]++] = {static_cast<uint32_t>(ids[i]),
                                                 static_cast<uint32_t>(i)};
  }
  engine.pool.Barrier();
}

template <int kDim, Optimizer kOptimizer>
void Update(Engine& engine, float* rows, int64_t num_rows, int64_t stride,
            const int32_t* ids, const float* grads, int64_t n,
            const Hyper& hyper) {
  int shift = 0;
  while (((num_rows - 1) >> shift) >= kMaxBuckets) ++shift;
  const int buckets = static_cast<int>((num_rows - 1) >> shift) + 1;
  engine.scattered.resize(n);
  engine.sorted.resize(n);
  engine.starts.resize(buckets + 1);
  engine.cursors.resize(int64_t{engine.pool.threads()} * buckets);
  std::atomic<int> next{0};
  engine.pool.Run([&](int t) {
    Scatter(engine, ids, n, shift, buckets, t);
    const uint32_t width = 1U << shift;
    std::vector<uint32_t> counts(width + 1);
    for (int b = next.fetch_add(kChunk); b < buckets;
         b = next.fetch_add(kChunk)) {
      const int stop = std::min(b + kChunk, buckets);
      for (int k = b; k < stop; ++k) {
        const uint32_t from = engine.starts[k];
        SortBucket(&engine.scattered[from], engine.starts[k + 1] - from,
                   static_cast<uint32_t>(k) << shift, width, counts.data(),
                   &engine.sorted[from]);
      }
      const uint32_t from = engine.starts[b];
      ApplyRange<kDim, kOptimizer>(&engine.sorted[from],
                                   engine.starts[stop] - from, grads, rows,
                                   stride, hyper);
    }
  });
}

// Reads and writes each listed row once while the gradients stream by.
float TouchRange(float* rows, int64_t stride, const int32_t* ids, int begin,
                 int end, int64_t ahead, const float* grads, int64_t floats,
                 float zero) {
  const __m256 nothing = _mm256_set1_ps(zero);
  __m256 sum[4] = {nothing, nothing, nothing, nothing};
  const int64_t steps = floats / (4 * kLane);
  int64_t step = 0;
  for (int i = begin; i < end; ++i) {
    if (i + ahead < end) {
      PrefetchRow(rows + ids[i + ahead] * stride, static_cast<int>(stride));
    }
    const int64_t stop = steps * (i - begin + 1) / (end - begin);
    for (; step < stop; ++step) {
      for (int v = 0; v < 4; ++v) {
        const float* g = grads + (step * 4 + v) * kLane;
        sum[v] = _mm256_add_ps(sum[v], _mm256_loadu_ps(g));
      }
    }
    float* row = rows + ids[i] * stride;
    for (int64_t c = 0; c < stride; c += kLane) {
      _mm256_store_ps(row + c, _mm256_add_ps(_mm256_load_ps(row + c), nothing));
    }
  }
  sum[0] = _mm256_add_ps(_mm256_add_ps(sum[0], sum[1]),
                         _mm256_add_ps(sum[2], sum[3]));
  return _mm256_cvtss_f32(sum[0]);
}

template <int kDim>
int UpdateDim(Engine& engine, int optimizer, float* rows, int64_t num_rows,
              const int32_t* ids, const float* grads, int64_t n,
              const Hyper& hyper) {
  switch (static_cast<Optimizer>(optimizer)) {
    case Optimizer::kSgd:
      Update<kDim, Optimizer::kSgd>(engine, rows, num_rows, kDim, ids, grads, n,
                                    hyper);
      return 0;
    case Optimizer::kAdagrad:
      Update<kDim, Optimizer::kAdagrad>(engine, rows, num_rows, 2 * kDim, ids,
                                        grads, n, hyper);
      return 0;
    case Optimizer::kAdam:
      Update<kDim, Optimizer::kAdam>(engine, rows, num_rows, 3 * kDim, ids,
                                     grads, n, hyper);
      return 0;
  }
  return -1;
}

}  // namespace

extern "C" {

void* bench_open(int threads) { return new Engine(threads); }

void bench_close(void* engine) { delete static_cast<Engine*>(engine); }

// Zeroed memory on 2 MiB pages where the kernel grants them; null when there
// is none.
void* bench_map(int64_t bytes) {
  const size_t size = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  char* raw =
      static_cast<char*>(mmap(nullptr, size + kHugePage, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (raw == MAP_FAILED) return nullptr;
  // The kernel only uses huge pages where an aligned stretch of 2 MiB fits.
  const size_t skip =
      (kHugePage - reinterpret_cast<uintptr_t>(raw)) % kHugePage;
  if (skip != 0) munmap(raw, skip);
  munmap(raw + skip + size, kHugePage - skip);
  AdviseHugePages(raw + skip, size);
  return raw + skip;
}

void bench_unmap(void* memory, int64_t bytes) {
  munmap(memory, (bytes + kHugePage - 1) / kHugePage * kHugePage);
}

// out[i] = rows[ids[i]][:dim]. `ahead` and `stream` (-1: by the size of the
// output) choose the variant. Returns -1 for a width that was not compiled.
// A null `out` stands for memory taken from malloc and given back: the least
// that a call whose result is a fresh array can cost.
int bench_gather(void* handle, const float* rows, int64_t stride,
                 const int32_t* ids, int64_t n, int64_t dim, int64_t ahead,
                 int stream, float* out) {
  Pool& pool = static_cast<Engine*>(handle)->pool;
  const bool past = stream < 0 ? n * dim * 4 > kStreamBytes : stream != 0;
  std::unique_ptr<float, void (*)(void*)> fresh(nullptr, std::free);
  if (out == nullptr) {
    out = static_cast<float*>(std::aligned_alloc(64, n * dim * 4));
    if (out == nullptr) return -1;
    fresh.reset(out);
    AdviseHugePages(out, n * dim * 4);
  }
  switch (dim) {
    case 16:
      Gather<16>(pool, rows, stride, ids, n, ahead, past, out);
      return 0;
    case 64:
      Gather<64>(pool, rows, stride, ids, n, ahead, past, out);
      return 0;
    case 128:
      Gather<128>(pool, rows, stride, ids, n, ahead, past, out);
      return 0;
    default:
      return -1;
  }
}

// One optimizer step (0 SGD, 1 Adagrad, 2 Adam; `step` counts from 1) on the
// rows of a batch. Returns -1 for a width or an optimizer that is unknown.
int bench_update(void* handle, int optimizer, float* rows, int64_t num_rows,
                 const int32_t* ids, const float* grads, int64_t n, int64_t dim,
                 float rate, float eps, float beta1, float beta2,
                 int64_t step) {
  Engine& engine = *static_cast<Engine*>(handle);
  Hyper hyper{rate, eps, beta1, beta2};
  if (optimizer == static_cast<int>(Optimizer::kAdam)) {
    const double done1 = 1 - std::pow(beta1, static_cast<double>(step));
    const double done2 = 1 - std::pow(beta2, static_cast<double>(step));
    // As if both moments were divided by these: eps moves to the other side.
    hyper.rate = static_cast<float>(rate * std::sqrt(done2) / done1);
    hyper.eps = static_cast<float>(eps * std::sqrt(done2));
  }
  switch (dim) {
    case 16:
      return UpdateDim<16>(engine, optimizer, rows, num_rows, ids, grads, n,
                           hyper);
    case 64:
      return UpdateDim<64>(engine, optimizer, rows, num_rows, ids, grads, n,
                           hyper);
    case 128:
      return UpdateDim<128>(engine, optimizer, rows, num_rows, ids, grads, n,
                            hyper);
    default:
      return -1;
  }
}

// The traffic of an update alone: each of `n` different rows is read and
// written once (unchanged, when `zero` is 0), `floats` gradients are read.
float bench_touch(void* handle, float* rows, int64_t stride, const int32_t* ids,
                  int64_t n, int64_t ahead, const float* grads, int64_t floats,
                  float zero) {
  Pool& pool = static_cast<Engine*>(handle)->pool;
  std::vector<float> sums(pool.threads());
  pool.Run([&](int t) {
    const int64_t first = floats / 32 * t / pool.threads() * 32;
    const int64_t last = floats / 32 * (t + 1) / pool.threads() * 32;
    sums[t] = TouchRange(rows, stride, ids, Split(n, t, pool.threads()),
                         Split(n, t + 1, pool.threads()), ahead, grads + first,
                         last - first, zero);
  });
  return sums[0];
}

}  // extern "C"
