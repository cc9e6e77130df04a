// What the store's index and its host tier cost, beside the least that the
// memory of the machine asks for.
//
//   g++ -std=c++17 -O3 -pthread -Ixla_ffi -o store_memory
//       benchmarks/store_memory.cc xla_ffi/store/{crew,host_cache,host_tier}.cc
//       xla_ffi/store/{index_shard,pages,row_arena,row_index,s3_fifo,status}.cc
//   ./store_memory index KEYS [LOCATION_BITS]
//   ./store_memory host ROW_BYTES THREADS [GIB]
//
// `index` fills an index with KEYS keys in batches, then times searches.
// `host` fills GIB (default 2) of memory with rows, then times batches of
// random rows: the limit (a plain copy of rows whose addresses are known,
// prefetched as far ahead as is best), HostTier and HostCache. Each number is
// the median of its rounds. Use an otherwise idle machine.

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "store/host_cache.h"
#include "store/host_tier.h"
#include "store/pipeline.h"
#include "store/row_arena.h"
#include "store/row_index.h"

namespace {

using namespace oneemb;  // NOLINT(google-build-using-namespace)

constexpr int64_t kBatch = int64_t{1} << 17;

double Now() {
  return std::chrono::duration<double>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

double Seconds(const std::function<void()>& work) {
  const double begin = Now();
  work();
  return Now() - begin;
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

void Require(const Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "%s\n", status.message().c_str());
  std::exit(1);
}

// The i-th key: ids in steps of 7, dealt to 26 tables.
Key KeyNumber(int64_t i) {
  return {static_cast<uint64_t>(i) * 7 + 3, static_cast<uint16_t>(i % 26)};
}

std::vector<Key> RandomKeys(std::mt19937_64* random, int64_t keys) {
  std::vector<Key> batch(kBatch);
  for (Key& key : batch) {
    key = KeyNumber(
        static_cast<int64_t>((*random)() % static_cast<uint64_t>(keys)));
  }
  return batch;
}

void FillIndex(RowIndex* index, int64_t keys, uint64_t max_location) {
  std::vector<Key> batch(kBatch);
  std::vector<uint64_t> locations(kBatch);
  std::vector<uint64_t> old(kBatch);
  double reserve = 0;
  double put = 0;
  double longest = 0;
  double most_bytes = 0;
  for (int64_t begin = 0; begin < keys; begin += kBatch) {
    const int64_t n = std::min(kBatch, keys - begin);
    for (int64_t i = 0; i < n; ++i) {
      batch[static_cast<size_t>(i)] = KeyNumber(begin + i);
      locations[static_cast<size_t>(i)] = static_cast<uint64_t>(begin + i);
    }
    const double seconds = Seconds(
        [&] { Require(index->Reserve(batch.data(), n, max_location)); });
    reserve += seconds;
    longest = std::max(longest, seconds);
    put += Seconds(
        [&] { index->Put(batch.data(), locations.data(), n, old.data()); });
    if (begin < keys / 4) continue;
    most_bytes = std::max(most_bytes, static_cast<double>(index->bytes()) /
                                          static_cast<double>(index->size()));
  }
  const auto n = static_cast<double>(keys);
  std::printf("%ld keys: %.2f bytes a key, at most %.2f on the way there\n",
              static_cast<long>(index->size()),
              static_cast<double>(index->bytes()) / n, most_bytes);
  std::printf(
      "insert: put %.0f ns, growth %.0f ns a key; the longest Reserve, "
      "of %ld keys, %.1f ms\n",
      put / n * 1e9, reserve / n * 1e9, static_cast<long>(kBatch),
      longest * 1e3);
}

void TimeIndex(int64_t keys, int location_bits) {
  RowIndex index;
  const uint64_t max_location = uint64_t{1} << location_bits;
  FillIndex(&index, keys, max_location);
  std::mt19937_64 random(1);
  std::vector<uint64_t> locations(kBatch);
  std::vector<uint64_t> old(kBatch);
  constexpr int kRounds = 21;
  const auto report = [&](const char* name, bool present, bool put) {
    std::vector<double> seconds;
    for (int round = 0; round < kRounds; ++round) {
      std::vector<Key> batch = RandomKeys(&random, keys);
      for (Key& key : batch) key.id += present ? 0 : 1;
      seconds.push_back(Seconds([&] {
        if (put) {
          index.Put(batch.data(), locations.data(), kBatch, old.data());
        } else {
          index.Find(batch.data(), kBatch, old.data());
        }
      }));
    }
    std::printf("%s: %.1f ns a key\n", name, Median(seconds) / kBatch * 1e9);
  };
  report("find, present", true, false);
  report("find, absent", false, false);
  report("overwrite", true, true);
}

// Splits a batch among threads; the same for every system.
void OnThreads(int threads, const std::function<void(int64_t, int64_t)>& work) {
  std::vector<std::thread> others;
  const int64_t share = kBatch / threads;
  for (int t = 1; t < threads; ++t) {
    others.emplace_back([&work, share, t] { work(share * t, share); });
  }
  work(0, share);
  for (std::thread& other : others) other.join();
}

struct HostBenchmark {
  int64_t width;
  int threads;
  int64_t num_rows;
  std::mt19937_64 random{1};
  std::vector<char> out;
  std::vector<uint8_t> found;

  // ns a row, the median of rounds with fresh random rows.
  template <class Work>
  double Time(const Work& work) {
    constexpr int kRounds = 15;
    std::vector<double> seconds;
    for (int round = 0; round < kRounds; ++round) {
      const std::vector<Key> keys = RandomKeys(&random, num_rows);
      seconds.push_back(Seconds([&] {
        OnThreads(threads, [&](int64_t begin, int64_t n) {
          work(keys.data() + begin, n, out.data() + begin * width,
               found.data() + begin);
        });
      }));
    }
    return Median(seconds) / kBatch * 1e9;
  }

  void Report(const char* name, double ns, double limit) const {
    std::printf(
        "%6ld B rows, %d thread(s): %-28s %7.1f ns a row, %6.2f GB/s, "
        "%3.0f %% of the limit\n",
        static_cast<long>(width), threads, name, ns,
        static_cast<double>(width) / ns, limit / ns * 100);
  }
};

// The best that a copy of rows at known places reaches.
double TimeLimit(HostBenchmark* bench) {
  RowArena arena(PageSource::System(), bench->width);
  if (!arena.Extend(bench->num_rows)) Require({StatusKind::kNoMemory, "arena"});
  for (int64_t i = 0; i < bench->num_rows; ++i) {
    memset(arena.Row(static_cast<uint64_t>(i)), 1,
           static_cast<size_t>(bench->width));
  }
  double best = 1e9;
  for (const int64_t ahead : {4, 8, 12, 16, 24, 32}) {
    const double ns =
        bench->Time([&](const Key* keys, int64_t n, char* out, uint8_t*) {
          for (int64_t i = 0; i < n; ++i) {
            if (i + ahead < n) {
              PrefetchRow(arena.Row(keys[i + ahead].id / 7), bench->width);
            }
            memcpy(out + i * bench->width, arena.Row(keys[i].id / 7),
                   static_cast<size_t>(bench->width));
          }
        });
    best = std::min(best, ns);
  }
  return best;
}

template <class Put>
void FillRows(const HostBenchmark& bench, const Put& put) {
  std::vector<Key> keys(kBatch);
  const std::vector<char> rows(static_cast<size_t>(kBatch * bench.width), 1);
  for (int64_t begin = 0; begin < bench.num_rows; begin += kBatch) {
    const int64_t n = std::min(kBatch, bench.num_rows - begin);
    for (int64_t i = 0; i < n; ++i) {
      keys[static_cast<size_t>(i)] = KeyNumber(begin + i);
    }
    put(keys.data(), rows.data(), n);
  }
}

void TimeTier(HostBenchmark* bench, double limit) {
  std::unique_ptr<HostTier> tier;
  Require(HostTier::Open({bench->width, INT64_MAX}, &tier));
  FillRows(*bench, [&](const Key* keys, const char* rows, int64_t n) {
    Require(tier->Put(keys, rows, n));
  });
  bench->Report(
      "HostTier::Fetch",
      bench->Time([&](const Key* keys, int64_t n, char* out, uint8_t* found) {
        tier->Fetch(keys, n, out, found);
      }),
      limit);
  if (bench->threads > 1) return;
  bench->Report(
      "HostTier::Put, overwriting",
      bench->Time([&](const Key* keys, int64_t n, char* out, uint8_t*) {
        Require(tier->Put(keys, out, n));
      }),
      limit);
}

void TimeCache(HostBenchmark* bench, double limit) {
  std::unique_ptr<HostCache> cache;
  Require(HostCache::Open({bench->width, bench->num_rows * (bench->width + 32)},
                          &cache));
  std::vector<uint8_t> taken(kBatch);
  FillRows(*bench, [&](const Key* keys, const char* rows, int64_t n) {
    cache->Insert(keys, rows, n, false, taken.data());
  });
  bench->Report(
      "HostCache::Fetch",
      bench->Time([&](const Key* keys, int64_t n, char* out, uint8_t* found) {
        cache->Fetch(keys, n, out, found);
      }),
      limit);
  if (bench->threads > 1) return;
  std::vector<Key> fresh(kBatch);
  std::vector<double> seconds;
  int64_t next = bench->num_rows;
  for (int round = 0; round < 9; ++round) {
    for (Key& key : fresh) key = KeyNumber(next++);
    std::vector<Key> victims;
    std::vector<char> rows;
    seconds.push_back(Seconds([&] {
      Require(cache->MakeRoom(kBatch, &victims, &rows));
      cache->DropVictims();
      cache->Insert(fresh.data(), bench->out.data(), kBatch, true,
                    taken.data());
    }));
  }
  bench->Report("HostCache, evict and insert", Median(seconds) / kBatch * 1e9,
                limit);
}

void TimeHost(int64_t width, int threads, double gib) {
  HostBenchmark bench;
  bench.width = width;
  bench.threads = threads;
  bench.num_rows = static_cast<int64_t>(gib * (1 << 30)) / width;
  bench.out.resize(static_cast<size_t>(kBatch * width));
  bench.found.resize(kBatch);
  const double limit = TimeLimit(&bench);
  bench.Report("limit", limit, limit);
  TimeTier(&bench, limit);
  TimeCache(&bench, limit);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc > 1 ? argv[1] : "";
  if (what == "index" && argc > 2) {
    TimeIndex(std::atoll(argv[2]), argc > 3 ? std::atoi(argv[3]) : 32);
  } else if (what == "host" && argc > 3) {
    TimeHost(std::atoll(argv[2]), std::atoi(argv[3]),
             argc > 4 ? std::atof(argv[4]) : 2);
  } else {
    std::fprintf(stderr,
                 "store_memory index KEYS [LOCATION_BITS]\n"
                 "store_memory host ROW_BYTES THREADS [GIB]\n");
    return 2;
  }
  return 0;
}
