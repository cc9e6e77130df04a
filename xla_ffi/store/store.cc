#include "store/store.h"

#include <algorithm>
#include <exception>
#include <new>
#include <utility>

#include "store/cached_backend.h"
#include "store/folder.h"
#include "store/host_backend.h"
#include "store/ssd_backend.h"

namespace oneemb {
namespace {

Status Invalid(const std::string& message) {
  return {StatusKind::kInvalidArgument, message};
}

// The one place in which exceptions end. The standard library throws them when
// there is no memory; everything below changes its state last, so the store is
// as it was.
template <class Body>
Status Guard(const Body& body) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return {StatusKind::kNoMemory, "no memory"};  // nor for more words
  } catch (const std::exception&) {
    return {StatusKind::kUnavailable, "an exception"};  // nothing throws others
  }
}

Status CheckOptions(const StoreOptions& options) {
  if (options.path.empty()) {
    return Invalid("path: empty; name a folder of the store's own");
  }
  if (options.row_bytes < kMinRowBytes || options.row_bytes > kMaxRowBytes) {
    return Invalid("row_bytes: " + std::to_string(options.row_bytes) +
                   "; rows have " + std::to_string(kMinRowBytes) + " to " +
                   std::to_string(kMaxRowBytes) + " bytes");
  }
  const SsdTierOptions& ssd = options.ssd;
  if (ssd.block_bytes != 512 && ssd.block_bytes != 4096) {
    return Invalid("ssd.block_bytes: " + std::to_string(ssd.block_bytes) +
                   "; use 512 or 4096");
  }
  if (ssd.segment_bytes < kBlockBytes || ssd.write_bytes < kBlockBytes ||
      ssd.write_bytes % kBlockBytes != 0) {
    return Invalid(
        "ssd.segment_bytes, ssd.write_bytes: a block of 4096 bytes at least, "
        "and write_bytes a multiple of it");
  }
  if (ssd.read_depth < 1 || ssd.write_depth < 1 || ssd.read_depth > 4096 ||
      ssd.write_depth > 4096 || ssd.readers < 1) {
    return Invalid(
        "ssd.read_depth, ssd.write_depth: use 1 to 4096; ssd.readers: 1 at "
        "least");
  }
  if (!(ssd.policy.utilisation > 0 && ssd.policy.utilisation < 1) ||
      !(ssd.compaction_share > 0)) {
    return Invalid(
        "ssd.policy.utilisation must lie between 0 and 1, ssd.compaction_share "
        "above 0");
  }
  return {};
}

Status OpenBackend(const std::shared_ptr<Env>& env, const StoreOptions& options,
                   std::unique_ptr<Backend>* backend) {
  SsdTierOptions ssd = options.ssd;
  ssd.row_bytes = options.row_bytes;
  HostTierOptions host;
  host.row_bytes = options.row_bytes;
  host.budget_bytes = options.host_budget_bytes;
  switch (options.kind) {
    case StoreKind::kHost:
      return HostBackend::Open(env, options.path, host, ssd, backend);
    case StoreKind::kSsd:
      return SsdBackend::Open(env, options.path, ssd, backend);
    case StoreKind::kCachedSsd:
      return CachedBackend::Open(env, options.path, host, ssd, backend);
  }
  return Invalid("kind: not one of StoreKind");
}

}  // namespace

Status Store::CheckProcess() const {
  const int64_t now = env_->ProcessId();
  if (now == process_) return {};
  return {StatusKind::kUnavailable,
          options_.path + ": this Store belongs to process " +
              std::to_string(process_) + "; process " + std::to_string(now) +
              ", forked from it, must open a folder of its own"};
}

template <class Body>
Status Store::Run(const Body& body) const {
  return Guard([&]() -> Status {
    ONEEMB_RETURN_IF_ERROR(CheckProcess());
    return body();
  });
}

Status Store::Open(const StoreOptions& options, std::unique_ptr<Store>* store) {
  return Guard([&]() -> Status {
    ONEEMB_RETURN_IF_ERROR(CheckOptions(options));
    std::unique_ptr<Store> fresh(new Store(options));
    fresh->env_ = options.env;
    if (fresh->env_ == nullptr) {
      ONEEMB_RETURN_IF_ERROR(NewPosixEnv(options.engine, &fresh->env_));
    }
    fresh->process_ = fresh->env_->ProcessId();
    ONEEMB_RETURN_IF_ERROR(
        OpenFolder(fresh->env_.get(), options.path, &fresh->lock_));
    ONEEMB_RETURN_IF_ERROR(OpenBackend(fresh->env_, options, &fresh->backend_));
    *store = std::move(fresh);
    return {};
  });
}

Store::~Store() {
  if (env_ == nullptr) return;
  if (env_->ProcessId() != process_) {
    // A forked child has none of the threads, and its locks may be held by
    // nobody: what it inherited is left alone, lock file included (and Env: the
    // backend holds it).
    [[maybe_unused]] const Backend* const backend = backend_.release();
    [[maybe_unused]] const FileLock* const lock = lock_.release();
    return;
  }
  backend_ = nullptr;  // its threads end, its files are closed
  if (lock_ == nullptr) return;
  // What an error leaves takes space until the folder is opened again.
  (void)Guard([&] { return CloseFolder(env_.get(), options_.path, *lock_); });
}

Status Store::Fetch(KeySpan keys, char* rows, uint8_t* found, Access access) {
  Status status =
      Run([&] { return backend_->Fetch(keys, rows, found, access); });
  if (status.kind() == StatusKind::kNoMemory ||
      status.kind() == StatusKind::kUnavailable) {
    std::fill(found, found + keys.size, kRowFailed);  // it never began
  }
  return status;
}

Status Store::Put(KeySpan keys, const char* rows) {
  return Run([&] { return backend_->Put(keys, rows); });
}

Status Store::Erase(KeySpan keys, uint8_t* erased) {
  return Run([&] { return backend_->Erase(keys, erased); });
}

Status Store::Size(int64_t* rows) const {
  return Run([&]() -> Status {
    *rows = backend_->size();
    return {};
  });
}

Status Store::Stats(StoreStats* stats) const {
  return Run([&]() -> Status {
    *stats = StoreStats();
    stats->engine = env_->engine_name();
    backend_->AddStats(stats);
    return {};
  });
}

Status Store::Iterate(std::unique_ptr<RowSource>* rows) {
  return Run([&] { return backend_->Iterate(rows); });
}

Status Store::Compact() {
  return Run([&] { return backend_->Compact(); });
}

Status Store::Save(const std::string& name, const std::string& user) {
  return Run([&]() -> Status {
    SnapshotWriter writer(env_, options_.path);
    ONEEMB_RETURN_IF_ERROR(writer.Begin(name));
    ONEEMB_RETURN_IF_ERROR(backend_->Save(&writer));
    // Off the path of training: the rows are pinned by their links.
    return writer.Commit(options_.row_bytes, user);
  });
}

Status Store::Load(const std::string& name, std::string* user,
                   LoadCheck check) {
  return Run([&]() -> Status {
    ONEEMB_RETURN_IF_ERROR(CheckSnapshotName(name));
    return LoadFrom(SnapshotPath(options_.path, name), user, check);
  });
}

Status Store::LoadFrom(const std::string& folder, std::string* user,
                       LoadCheck check) {
  return Run([&]() -> Status {
    Snapshot snapshot;
    ONEEMB_RETURN_IF_ERROR(OpenSnapshot(env_.get(), folder, &snapshot));
    if (snapshot.manifest.row_bytes != options_.row_bytes) {
      return Invalid(
          folder + ": rows of " + std::to_string(snapshot.manifest.row_bytes) +
          " bytes; this store's have " + std::to_string(options_.row_bytes));
    }
    if (check == LoadCheck::kRows && options_.kind != StoreKind::kHost) {
      ONEEMB_RETURN_IF_ERROR(CheckSnapshotRows(env_.get(), folder, snapshot));
    }
    ONEEMB_RETURN_IF_ERROR(backend_->Load(folder, snapshot));
    if (user != nullptr) *user = std::move(snapshot.manifest.user);
    return {};
  });
}

Status Store::List(std::vector<std::string>* names) const {
  return Run([&] { return ListSnapshots(env_.get(), options_.path, names); });
}

Status Store::Verify(const std::string& name) const {
  return Run([&]() -> Status {
    ONEEMB_RETURN_IF_ERROR(CheckSnapshotName(name));
    return VerifySnapshot(env_.get(), SnapshotPath(options_.path, name));
  });
}

Status Store::Delete(const std::string& name) {
  return Run([&] { return DeleteSnapshot(env_.get(), options_.path, name); });
}

}  // namespace oneemb
