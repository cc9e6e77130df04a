// Snapshots for Python, without an open Store: read anywhere, written as a
// stream, so that no index of their rows is ever in memory.
#include <fcntl.h>
#include <linux/fs.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "store/folder.h"
#include "store/snapshot.h"
#include "store_arrays.h"
#include "store_module.h"

namespace oneemb {
namespace {

std::shared_ptr<Env> NewEnv() {
  std::shared_ptr<Env> env;
  Raise(NewPosixEnv(Engine::kAuto, &env));
  return env;
}

// A snapshot's folder, opened to read it; takes no lock.
class SnapshotReader {
 public:
  explicit SnapshotReader(const nb::bytes& folder) : env_(NewEnv()) {
    const std::string path = PathOf(folder);
    RunReleased([&] { return OpenSnapshot(env_.get(), path, &snapshot_); });
  }

  int64_t rows() const { return snapshot_.manifest.num_rows; }
  int64_t row_bytes() const { return snapshot_.manifest.row_bytes; }
  nb::bytes user() const {
    const std::string& user = snapshot_.manifest.user;
    return nb::bytes(user.data(), user.size());
  }
  std::unique_ptr<Rows> Items() const {
    return std::make_unique<Rows>(
        nullptr, std::make_unique<RowIterator>(env_, snapshot_.views),
        row_bytes());
  }

 private:
  const std::shared_ptr<Env> env_;
  Snapshot snapshot_;
};

int64_t CheckedRowBytes(int64_t row_bytes) {
  if (row_bytes < kMinRowBytes || row_bytes > kMaxRowBytes) {
    throw nb::value_error("row_bytes: rows have 4 to 65536 bytes");
  }
  return row_bytes;
}

// Writes one snapshot batch by batch; owns the folder meanwhile. What is not
// committed leaves no trace.
class SnapshotStream {
 public:
  // `num_rows` are to come: its files have room for these. Should more come,
  // they get more files.
  SnapshotStream(const nb::bytes& root, const std::string& name,
                 int64_t row_bytes, int64_t num_rows, int64_t segment_bytes)
      : env_(NewEnv()),
        row_bytes_(row_bytes),
        layout_(LayoutFor(CheckedRowBytes(row_bytes))),
        slots_per_segment_(layout_.SlotsFor(num_rows, segment_bytes)) {
    // Before a folder is made or taken over.
    Raise(CheckSnapshotName(name));
    const std::string path = PathOf(root);
    RunReleased([&]() -> Status {
      ONEEMB_RETURN_IF_ERROR(OpenFolder(env_.get(), path, &lock_));
      writer_ = std::make_unique<SnapshotWriter>(env_, path);
      return writer_->Begin(name);
    });
  }

  void Write(const Ids& ids, const Tables& tables, const RowsIn& rows) {
    const std::vector<Key> keys = Keys(ids, tables);
    CheckRows(rows.shape(0), rows.shape(1), keys.size(), row_bytes_);
    if (keys.empty()) return;
    RunReleased([&]() -> Status {
      const std::lock_guard<std::mutex> lock(mutex_);
      ONEEMB_RETURN_IF_ERROR(CheckOpen());
      return OrFinish([&] {
        return AddBatch(keys, reinterpret_cast<const char*>(rows.data()));
      });
    });
  }

  // Takes over all rows of another snapshot, by hard link; for a writer that
  // has none.
  void Link(const nb::bytes& folder) {
    const std::string path = PathOf(folder);
    RunReleased([&]() -> Status {
      const std::lock_guard<std::mutex> lock(mutex_);
      ONEEMB_RETURN_IF_ERROR(CheckOpen());
      Snapshot snapshot;
      ONEEMB_RETURN_IF_ERROR(OpenSnapshot(env_.get(), path, &snapshot));
      if (!writer_->views().empty() || !waiting_keys_.empty() ||
          snapshot.manifest.row_bytes != row_bytes_) {
        return {StatusKind::kInvalidArgument,
                path + ": cannot be joined with other rows"};
      }
      return OrFinish(
          [&] { return writer_->AddSegments(path, snapshot.views); });
    });
  }

  void Commit(const nb::bytes& user) {
    const std::string text(user.c_str(), user.size());
    RunReleased([&]() -> Status {
      const std::lock_guard<std::mutex> lock(mutex_);
      ONEEMB_RETURN_IF_ERROR(CheckOpen());
      return OrFinish([&]() -> Status {
        ONEEMB_RETURN_IF_ERROR(
            AddWaiting(static_cast<int64_t>(waiting_keys_.size())));
        ONEEMB_RETURN_IF_ERROR(writer_->SealRows());
        ONEEMB_RETURN_IF_ERROR(writer_->Commit(row_bytes_, text));
        Finish();
        return {};
      });
    });
  }

  void Close() {
    const nb::gil_scoped_release released;
    const std::lock_guard<std::mutex> lock(mutex_);
    Finish();
  }

 private:
  Status CheckOpen() const {
    if (writer_ != nullptr) return {};
    return {StatusKind::kInvalidArgument, "the writer is closed"};
  }
  // What is added begins a frame, and leaves the slots behind it empty. So only
  // whole frames are, and the rest of a batch waits for the next: else a sparse
  // table's many batches of a few rows would fill file after file.
  Status AddBatch(const std::vector<Key>& keys, const char* rows) {
    const int64_t bytes = static_cast<int64_t>(keys.size()) * row_bytes_;
    waiting_keys_.insert(waiting_keys_.end(), keys.begin(), keys.end());
    waiting_rows_.insert(waiting_rows_.end(), rows, rows + bytes);
    return AddWaiting(RoundDown(static_cast<int64_t>(waiting_keys_.size()),
                                layout_.slots_per_frame));
  }
  Status AddWaiting(int64_t count) {
    if (count == 0) return {};
    const SsdTierOptions ssd;
    ONEEMB_RETURN_IF_ERROR(
        writer_->AddRows({env_.get(), "", layout_, slots_per_segment_,
                          ssd.write_bytes, ssd.write_depth, &next_number_},
                         {waiting_keys_.data(), count}, waiting_rows_.data()));
    waiting_keys_.erase(waiting_keys_.begin(), waiting_keys_.begin() + count);
    waiting_rows_.erase(waiting_rows_.begin(),
                        waiting_rows_.begin() + count * row_bytes_);
    return {};
  }
  // Rows of what failed, for want of memory say, may be missing: nothing can be
  // added to the others.
  template <class Work>
  Status OrFinish(Work work) {
    try {
      Status status = work();
      if (!status.ok()) Finish();
      return status;
    } catch (...) {
      Finish();
      throw;
    }
  }
  void Finish() {
    writer_ = nullptr;
    lock_ = nullptr;
  }

  std::mutex mutex_;
  const std::shared_ptr<Env> env_;
  const int64_t row_bytes_;
  const SegmentLayout layout_;
  const int64_t slots_per_segment_;
  std::vector<Key> waiting_keys_;
  std::vector<char> waiting_rows_;
  std::atomic<uint64_t> next_number_{1};
  std::unique_ptr<FileLock> lock_;
  std::unique_ptr<SnapshotWriter> writer_;
};

std::vector<std::string> ListNames(const nb::bytes& root) {
  std::vector<std::string> names;
  const std::shared_ptr<Env> env = NewEnv();
  const std::string path = PathOf(root);
  RunReleased([&] { return ListSnapshots(env.get(), path, &names); });
  return names;
}

// `progress` is called with a number of rows, now and then, or is None. What it
// raises, and Ctrl-C, ends the reading.
void VerifyFolder(const nb::bytes& folder, const nb::object& progress) {
  const std::shared_ptr<Env> env = NewEnv();
  const std::string path = PathOf(folder);
  const auto report = [&progress](int64_t rows) -> Status {
    const nb::gil_scoped_acquire acquired;
    try {
      if (PyErr_CheckSignals() != 0) throw nb::python_error();
      if (!progress.is_none()) progress(rows);
      return {};
    } catch (nb::python_error& error) {
      error.restore();
    }
    return {StatusKind::kUnavailable, "interrupted"};
  };
  Status verified;
  {
    const nb::gil_scoped_release released;
    verified = VerifySnapshot(env.get(), path, report);
  }
  if (PyErr_Occurred() != nullptr) throw nb::python_error();
  Raise(verified);
}

// Takes the folder's lock: what a writer is about to finish is not in the way.
void DeleteName(const nb::bytes& root, const std::string& name) {
  const std::shared_ptr<Env> env = NewEnv();
  const std::string path = PathOf(root);
  RunReleased([&]() -> Status {
    std::unique_ptr<FileLock> lock;
    ONEEMB_RETURN_IF_ERROR(OpenFolder(env.get(), path, &lock));
    return DeleteSnapshot(env.get(), path, name);
  });
}

// Lets two folders of one file system change names, in one step.
void Exchange(const nb::bytes& from, const nb::bytes& to) {
  const std::string a = PathOf(from);
  const std::string b = PathOf(to);
  int error = 0;
  {
    const nb::gil_scoped_release released;
    // Not by its name: older C libraries have no renameat2.
    const int64_t done = syscall(SYS_renameat2, AT_FDCWD, a.c_str(), AT_FDCWD,
                                 b.c_str(), RENAME_EXCHANGE);
    error = done == 0 ? 0 : errno;
  }
  if (error != 0) {
    errno = error;
    PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, Text(b).ptr());
    throw nb::python_error();
  }
}

}  // namespace

void AddSnapshots(nb::module_& m) {
  nb::class_<SnapshotReader>(m, "SnapshotReader")
      .def(nb::init<const nb::bytes&>())
      .def_prop_ro("rows", &SnapshotReader::rows)
      .def_prop_ro("row_bytes", &SnapshotReader::row_bytes)
      .def_prop_ro("user", &SnapshotReader::user)
      .def("items", &SnapshotReader::Items);
  nb::class_<SnapshotStream>(m, "SnapshotWriter")
      .def(nb::init<const nb::bytes&, const std::string&, int64_t, int64_t,
                    int64_t>())
      .def("write", &SnapshotStream::Write)
      .def("link", &SnapshotStream::Link)
      .def("commit", &SnapshotStream::Commit)
      .def("close", &SnapshotStream::Close);
  m.def("list_snapshots", &ListNames);
  m.def("verify_snapshot", &VerifyFolder, nb::arg(),
        nb::arg().none() = nb::none());
  m.def("delete_snapshot", &DeleteName);
  m.def("exchange", &Exchange);
  m.def("check_snapshot_name",
        [](const std::string& name) { Raise(CheckSnapshotName(name)); });
}

}  // namespace oneemb
