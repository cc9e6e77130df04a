// The Store for Python.
#include "store_module.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "store/store.h"
#include "store/table_store.h"
#include "store_arrays.h"

namespace nb = nanobind;

namespace oneemb {
namespace {

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
  StoreHandle(const nb::bytes& path, int64_t row_bytes, const std::string& kind,
              int64_t host_budget_bytes, int64_t block_bytes,
              int64_t segment_bytes, const std::string& engine)
      : row_bytes_(row_bytes) {
    StoreOptions options;
    options.path = PathOf(path);
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

  // The Store, for a cached table as well.
  std::shared_ptr<Store> Share() const { return Use(); }

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

  void LoadFrom(const nb::bytes& folder) {
    const std::string path = PathOf(folder);
    const std::shared_ptr<Store> store = Use();
    RunReleased([&] { return store->LoadFrom(path, nullptr); });
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
      .def(nb::init<const nb::bytes&, int64_t, const std::string&, int64_t,
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
      .def("load_from", &StoreHandle::LoadFrom)
      .def("list", &StoreHandle::List)
      .def("verify", &StoreHandle::Verify)
      .def("delete", &StoreHandle::Delete);
}

// Figures of the Store that a cached table has: None without one.
nb::object StoreOfTable(const std::string& name) {
  const std::shared_ptr<TableStore> store = FindStore(name);
  if (store == nullptr) return nb::none();
  const TierFigures& figures = store->figures();
  nb::dict dict;
  dict["nonce"] = store->nonce();
  dict["generation"] = store->generation();
  dict["cache_hits"] = figures.hits.load();
  dict["cache_misses"] = figures.misses.load();
  dict["prefetched"] = figures.prefetched.load();
  dict["prefetch_refused"] = figures.refused.load();
  dict["stalls"] = figures.stalls.load();
  dict["victims"] = figures.victims.load();
  dict["write_backs"] = figures.write_backs.load();
  dict["unstaged"] = figures.unstaged.load();
  dict["stale"] = figures.stale.load();
  return dict;
}

// (ids, tables, rows) that wait to be written, after an attempt to do so. None
// without a Store.
nb::object SettleStore(const std::string& name) {
  const std::shared_ptr<TableStore> store = FindStore(name);
  if (store == nullptr) return nb::none();
  RowBatch batch;
  {
    const nb::gil_scoped_release released;
    store->Settle(&batch.keys, &batch.rows);
  }
  return Arrays(std::move(batch), store->row_bytes());
}

void AddTableStores(nb::module_& m) {
  m.def("settle_store", &SettleStore, "Rows that could not be written.");
  m.def(
      "attach_store",
      [](const std::string& name, const StoreHandle& store, int64_t slots) {
        const std::shared_ptr<Store> shared = store.Share();
        const nb::gil_scoped_release released;
        return AttachStore(name, shared, slots);
      },
      "Makes a Store the one of a table's name; a nonce.");
  m.def(
      "detach_store",
      [](const std::string& name, uint64_t nonce) {
        const nb::gil_scoped_release released;
        DetachStore(name, nonce);
      },
      "Lets go of a table's Store.");
  m.def(
      "replace_store",
      [](const std::string& name, const nb::bytes& folder) {
        const std::string path = PathOf(folder);
        const std::shared_ptr<TableStore> store = FindStore(name);
        if (store == nullptr) throw nb::value_error("the Store is closed");
        RunReleased([&] { return store->Replace(path); });
      },
      "Replaces all rows of a table's Store by a snapshot's.");
  m.def("store_of_table", &StoreOfTable,
        "Figures of a table's Store, or None.");
  m.def(
      "take_store_error",
      [](const std::string& name) {
        const std::shared_ptr<TableStore> store = FindStore(name);
        if (store != nullptr) Raise(store->TakeError());
      },
      "Raises, once, what a table's Store could not do.");
  m.def(
      "reset_store_figures",
      [](const std::string& name) {
        const std::shared_ptr<TableStore> store = FindStore(name);
        if (store != nullptr) store->figures().Reset();
      },
      "Counts of a table's Store from zero.");
}

}  // namespace

void AddStore(nb::module_& m) {
  AddStoreError(&m);
  nb::class_<Rows>(m, "Rows")
      .def("__iter__", [](nb::handle self) { return self; })
      .def("__next__", &Rows::Next);
  AddStoreClass(m);
  AddTableStores(m);
  AddSnapshots(m);
}

}  // namespace oneemb
