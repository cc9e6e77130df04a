// A store of rows below the device: billions of rows of one width, in host
// memory or on SSD, that are found by (table, id).
//
// What is put is there until it is erased or the process ends. What survives
// the process, a kill at any instant and a loss of power, is a snapshot that
// Save has reported saved. There is one copy of each row: damage is found and
// reported, never returned as data, and cannot be repaired.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "store/backend.h"
#include "store/env.h"
#include "store/key.h"
#include "store/ssd_tier.h"
#include "store/status.h"

namespace oneemb {

enum class StoreKind {
  kHost,       // all rows in host memory; the folder has snapshots only
  kSsd,        // all rows on SSD, the index in host memory
  kCachedSsd,  // the same, with a cache of rows in host memory
};

struct StoreOptions {
  StoreKind kind = StoreKind::kSsd;
  // The store's own folder; made if need be. Local storage: a network file
  // system may not lock or sync.
  std::string path;
  // Of a row, optimizer state included: 4 to 65536.
  int64_t row_bytes = 0;

  // An upper bound on host memory for rows, their index and metadata. kHost: a
  // put that would exceed it fails. kCachedSsd: the size of the cache, 64 KiB
  // at least; the index of the SSD comes on top.
  int64_t host_budget_bytes = int64_t{1} << 30;
  // The rest concerns SSDs alone. Its row_bytes is set from the above.
  SsdTierOptions ssd;

  // How transfers are made, unless `env` is given.
  Engine engine = Engine::kAuto;
  std::shared_ptr<Env> env;
};

// What Load looks at before it replaces anything.
enum class LoadCheck {
  kRows,       // everything: it reads the whole snapshot once
  kStructure,  // all but the rows, 10 bytes a row: a damaged one shows when it
               // is fetched. kHost reads rows in any case.
};

// Thread-safe. Batches are atomic: a fetch sees all rows of a put or none. Only
// the process that opened it may use it: a forked child gets kUnavailable.
class Store {
 public:
  // An empty store; snapshots in its folder stay. kLocked, naming the owner's
  // process id, when the folder has an open Store.
  static Status Open(const StoreOptions& options,
                     std::unique_ptr<Store>* store);
  // Rows that no snapshot has are gone.
  ~Store();
  Store(const Store&) = delete;
  Store& operator=(const Store&) = delete;

  // found[i] is kRowAbsent, kRowFound or kRowFailed; row i, of row_bytes, is
  // written only where found. The status is the first failure's, naming key,
  // file and offset; all other rows are good.
  Status Fetch(KeySpan keys, char* rows, uint8_t* found,
               Access access = Access::kTrain);
  // All rows or, on an error, none. Of a key that occurs twice the later row
  // counts.
  Status Put(KeySpan keys, const char* rows);
  // erased[i] is 1 where there was a row.
  Status Erase(KeySpan keys, uint8_t* erased);
  Status Size(int64_t* rows) const;
  Status Stats(StoreStats* stats) const;
  Status Iterate(std::unique_ptr<RowSource>* rows);
  // Reclaims what compaction can. It runs by itself; this is for tools.
  Status Compact();

  // Saves all rows of this moment, and `user` with them: at most 1 MiB. After
  // ok the snapshot survives anything that spares the disk. Rows that earlier
  // snapshots have are not written again.
  Status Save(const std::string& name, const std::string& user);
  // Replaces all rows by the snapshot's. Any error leaves the store as it was.
  Status Load(const std::string& name, std::string* user,
              LoadCheck check = LoadCheck::kRows);
  // The same from a snapshot's folder anywhere.
  Status LoadFrom(const std::string& folder, std::string* user,
                  LoadCheck check = LoadCheck::kRows);
  Status List(std::vector<std::string>* names) const;
  Status Verify(const std::string& name) const;
  Status Delete(const std::string& name);

  const StoreOptions& options() const { return options_; }

 private:
  explicit Store(StoreOptions options) : options_(std::move(options)) {}

  Status CheckProcess() const;
  // Runs `body` in this process only, and turns a lack of memory into a status.
  template <class Body>
  Status Run(const Body& body) const;

  const StoreOptions options_;
  std::shared_ptr<Env> env_;
  int64_t process_ = 0;
  std::unique_ptr<FileLock> lock_;
  std::unique_ptr<Backend> backend_;
};

}  // namespace oneemb
