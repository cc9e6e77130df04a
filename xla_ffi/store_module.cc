// The store for Python: arrays in and out, statuses as exceptions. Every call
// that may touch a disk runs without the interpreter's lock.
#include "store_module.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <cerrno>
#include <cstdint>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "store/store.h"

namespace nb = nanobind;

namespace oneemb {
namespace {

using Ids =
    nb::ndarray<const uint64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Tables =
    nb::ndarray<const uint16_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using RowsIn =
    nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using RowsOut =
    nb::ndarray<uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Flags = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// What Python sees as StoreError.
class StoreError : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// (errno, message) in the class of OSError that Python has for the errno.
[[noreturn]] void RaiseSystem(int error, const std::string& message) {
  const nb::tuple arguments = nb::make_tuple(error, message);
  PyErr_SetObject(PyExc_OSError, arguments.ptr());
  throw nb::python_error();
}

void Raise(const Status& status) {
  const std::string& message = status.message();
  const auto error_or = [&](int error) {
    return status.error() != 0 ? status.error() : error;
  };
  switch (status.kind()) {
    case StatusKind::kOk:
      return;
    case StatusKind::kInvalidArgument:
      throw nb::value_error(message.c_str());
    case StatusKind::kNotFound:
      RaiseSystem(ENOENT, message);
    case StatusKind::kAlreadyExists:
      RaiseSystem(EEXIST, message);
    case StatusKind::kLocked:
      RaiseSystem(EAGAIN, message);
    case StatusKind::kNoSpace:
      RaiseSystem(ENOSPC, message);
    case StatusKind::kIoError:
      RaiseSystem(error_or(EIO), message);
    case StatusKind::kNoLink:
      RaiseSystem(error_or(EXDEV), message);
    case StatusKind::kNoMemory:
      PyErr_SetString(PyExc_MemoryError, message.c_str());
      throw nb::python_error();
    case StatusKind::kCorruption:
    case StatusKind::kUnavailable:
      throw StoreError(message);
  }
}

// Runs `body` without the interpreter's lock and raises what it returns.
template <class Body>
void RunReleased(const Body& body) {
  Status status;
  {
    const nb::gil_scoped_release released;
    status = body();
  }
  Raise(status);
}

std::vector<Key> Keys(const Ids& ids, const Tables& tables) {
  if (ids.size() != tables.size()) {
    throw nb::value_error("ids and tables differ in length");
  }
  std::vector<Key> keys(ids.size());
  for (size_t i = 0; i < keys.size(); ++i) {
    keys[i] = {ids.data()[i], tables.data()[i]};
  }
  return keys;
}

KeySpan Span(const std::vector<Key>& keys) {
  return {keys.data(), static_cast<int64_t>(keys.size())};
}

void CheckRows(size_t count, size_t width, size_t keys, int64_t row_bytes) {
  if (count != keys || width != static_cast<size_t>(row_bytes)) {
    throw nb::value_error(("rows: expected " + std::to_string(keys) +
                           " rows of " + std::to_string(row_bytes) + " bytes")
                              .c_str());
  }
}

// An array that takes over a vector.
template <class T, class Vector>
nb::object Array(Vector vector, std::vector<size_t> shape) {
  auto owned = std::make_unique<Vector>(std::move(vector));
  void* data = owned->data();
  const nb::capsule owner(
      owned.get(), [](void* p) noexcept { delete static_cast<Vector*>(p); });
  (void)owned.release();
  return nb::cast(
      nb::ndarray<nb::numpy, T>(data, shape.size(), shape.data(), owner));
}

// (ids, tables, rows) of a batch.
nb::tuple Arrays(RowBatch batch, int64_t row_bytes) {
  const size_t count = batch.keys.size();
  std::vector<uint64_t> ids(count);
  std::vector<uint16_t> tables(count);
  for (size_t i = 0; i < count; ++i) {
    ids[i] = batch.keys[i].id;
    tables[i] = batch.keys[i].table;
  }
  return nb::make_tuple(
      Array<uint64_t>(std::move(ids), {count}),
      Array<uint16_t>(std::move(tables), {count}),
      Array<uint8_t>(std::move(batch.rows),
                     {count, static_cast<size_t>(row_bytes)}));
}

// Rows in chunks; keeps alive what they come from.
class Rows {
 public:
  Rows(std::shared_ptr<Store> store, std::unique_ptr<RowSource> source,
       int64_t row_bytes)
      : store_(std::move(store)),
        source_(std::move(source)),
        row_bytes_(row_bytes) {}

  nb::tuple Next() {
    RowBatch batch;
    RunReleased([&]() -> Status {
      const std::lock_guard<std::mutex> lock(mutex_);
      ONEEMB_RETURN_IF_ERROR(source_->Next(&batch));
      return batch.bad.empty() ? Status() : batch.bad.front();
    });
    if (batch.empty()) throw nb::stop_iteration();
    return Arrays(std::move(batch), row_bytes_);
  }

 private:
  std::mutex mutex_;
  const std::shared_ptr<Store> store_;
  const std::unique_ptr<RowSource> source_;
  const int64_t row_bytes_;
};

StoreKind KindOf(const std::string& name) {
  if (name == "host") return StoreKind::kHost;
  if (name == "ssd") return StoreKind::kSsd;
  if (name == "cached_ssd") return StoreKind::kCachedSsd;
  throw nb::value_error("kind: use host, ssd or cached_ssd");
}

Engine EngineOf(const std::string& name) {
  if (name == "auto") return Engine::kAuto;
  if (name == "io_uring") return Engine::kUring;
  if (name == "threads") return Engine::kThreads;
  throw nb::value_error("engine: use auto, io_uring or threads");
}

// A Store that can be closed while other threads use it: the last call that
// runs lets go of it.
class StoreHandle {
 public:
  StoreHandle(const std::string& path, int64_t row_bytes,
              const std::string& kind, int64_t host_budget_bytes,
              int64_t block_bytes, int64_t segment_bytes,
              const std::string& engine)
      : row_bytes_(row_bytes) {
    StoreOptions options;
    options.path = path;
    options.row_bytes = row_bytes;
    options.kind = KindOf(kind);
    options.host_budget_bytes = host_budget_bytes;
    options.ssd.block_bytes = block_bytes;
    options.ssd.segment_bytes = segment_bytes;
    options.engine = EngineOf(engine);
    std::unique_ptr<Store> store;
    RunReleased([&] { return Store::Open(options, &store); });
    store_ = std::move(store);
  }
  ~StoreHandle() { Close(); }
  StoreHandle(const StoreHandle&) = delete;
  StoreHandle& operator=(const StoreHandle&) = delete;

  void Close() {
    std::shared_ptr<Store> store = std::move(store_);
    const nb::gil_scoped_release released;
    store = nullptr;
  }
  bool closed() const { return store_ == nullptr; }

  void Fetch(const Ids& ids, const Tables& tables, const RowsOut& rows,
             const Flags& found, bool train) {
    const std::vector<Key> keys = Keys(ids, tables);
    CheckRows(rows.shape(0), rows.shape(1), keys.size(), row_bytes_);
    CheckFlags(found, keys);
    const std::shared_ptr<Store> store = Use();
    RunReleased([&] {
      return store->Fetch(Span(keys), reinterpret_cast<char*>(rows.data()),
                          found.data(),
                          train ? Access::kTrain : Access::kEvaluate);
    });
  }

  void Put(const Ids& ids, const Tables& tables, const RowsIn& rows) {
    const std::vector<Key> keys = Keys(ids, tables);
    CheckRows(rows.shape(0), rows.shape(1), keys.size(), row_bytes_);
    const std::shared_ptr<Store> store = Use();
    RunReleased([&] {
      return store->Put(Span(keys), reinterpret_cast<const char*>(rows.data()));
    });
  }

  void Erase(const Ids& ids, const Tables& tables, const Flags& erased) {
    const std::vector<Key> keys = Keys(ids, tables);
    CheckFlags(erased, keys);
    const std::shared_ptr<Store> store = Use();
    RunReleased([&] { return store->Erase(Span(keys), erased.data()); });
  }

  int64_t Size() {
    int64_t rows = 0;
    const std::shared_ptr<Store> store = Use();
    RunReleased([&] { return store->Size(&rows); });
    return rows;
  }

  nb::dict Stats() {
    StoreStats stats;
    const std::shared_ptr<Store> store = Use();
    RunReleased([&] { return store->Stats(&stats); });
    nb::dict dict;
    dict["engine"] = stats.engine;
    dict["direct_io"] = stats.direct_io;
    dict["rows"] = stats.rows;
    dict["memory_bytes"] = stats.memory_bytes;
    dict["index_bytes"] = stats.index_bytes;
    dict["huge_page_bytes"] = stats.huge_page_bytes;
    dict["cached_rows"] = stats.cached_rows;
    dict["dirty_rows"] = stats.dirty_rows;
    dict["hits"] = stats.hits;
    dict["misses"] = stats.misses;
    dict["segments"] = stats.segments;
    dict["slots"] = stats.slots;
    dict["live_slots"] = stats.live_slots;
    dict["damaged_segments"] = stats.damaged_segments;
    dict["put_bytes"] = stats.put_bytes;
    dict["moved_bytes"] = stats.moved_bytes;
    dict["compactions"] = stats.compactions;
    return dict;
  }

  std::unique_ptr<Rows> Items() {
    const std::shared_ptr<Store> store = Use();
    std::unique_ptr<RowSource> source;
    RunReleased([&] { return store->Iterate(&source); });
    return std::make_unique<Rows>(store, std::move(source), row_bytes_);
  }

  void Compact() {
    const std::shared_ptr<Store> store = Use();
    RunReleased([&] { return store->Compact(); });
  }

  void Save(const std::string& name, const nb::bytes& user) {
    const std::string text(user.c_str(), user.size());
    const std::shared_ptr<Store> store = Use();
    RunReleased([&] { return store->Save(name, text); });
  }

  nb::bytes Load(const std::string& name) {
    std::string user;
    const std::shared_ptr<Store> store = Use();
    RunReleased([&] { return store->Load(name, &user); });
    return nb::bytes(user.data(), user.size());
  }

  std::vector<std::string> List() {
    std::vector<std::string> names;
    const std::shared_ptr<Store> store = Use();
    RunReleased([&] { return store->List(&names); });
    return names;
  }

  void Verify(const std::string& name) {
    const std::shared_ptr<Store> store = Use();
    RunReleased([&] { return store->Verify(name); });
  }

  void Delete(const std::string& name) {
    const std::shared_ptr<Store> store = Use();
    RunReleased([&] { return store->Delete(name); });
  }

 private:
  std::shared_ptr<Store> Use() const {
    if (store_ == nullptr) throw nb::value_error("the Store is closed");
    return store_;
  }
  static void CheckFlags(const Flags& flags, const std::vector<Key>& keys) {
    if (flags.size() != keys.size()) {
      throw nb::value_error("flags: expected one a key");
    }
  }

  const int64_t row_bytes_;
  std::shared_ptr<Store> store_;
};

void AddStoreClass(nb::module_& m) {
  nb::class_<StoreHandle>(m, "Store")
      .def(nb::init<const std::string&, int64_t, const std::string&, int64_t,
                    int64_t, int64_t, const std::string&>())
      .def("close", &StoreHandle::Close)
      .def_prop_ro("closed", &StoreHandle::closed)
      .def("fetch", &StoreHandle::Fetch)
      .def("put", &StoreHandle::Put)
      .def("erase", &StoreHandle::Erase)
      .def("size", &StoreHandle::Size)
      .def("stats", &StoreHandle::Stats)
      .def("items", &StoreHandle::Items)
      .def("compact", &StoreHandle::Compact)
      .def("save", &StoreHandle::Save)
      .def("load", &StoreHandle::Load)
      .def("list", &StoreHandle::List)
      .def("verify", &StoreHandle::Verify)
      .def("delete", &StoreHandle::Delete);
}

}  // namespace

void AddStore(nb::module_& m) {
  const nb::exception<StoreError> error(m, "StoreError", PyExc_RuntimeError);
  nb::class_<Rows>(m, "Rows")
      .def("__iter__", [](nb::handle self) { return self; })
      .def("__next__", &Rows::Next);
  AddStoreClass(m);
}

}  // namespace oneemb
