// What the store's part of the Python module is made of: arrays in and out,
// statuses as exceptions. Every call that may touch a disk runs without the
// interpreter's lock.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "store/segment_scan.h"
#include "store/status.h"
#include "store/store.h"

namespace oneemb {

namespace nb = nanobind;

using Ids =
    nb::ndarray<const uint64_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Tables =
    nb::ndarray<const uint16_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using RowsIn =
    nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using RowsOut =
    nb::ndarray<uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Flags = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

// A path as os.fsencode gives it: any bytes. Messages that have it are decoded
// likewise.
std::string PathOf(const nb::bytes& path);
nb::object Text(const std::string& text);

// Adds StoreError to the module: what Raise raises for damage.
void AddStoreError(nb::module_* module);
// Nothing for ok, else the exception that Python has for the kind of error.
void Raise(const Status& status);

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

std::vector<Key> Keys(const Ids& ids, const Tables& tables);
KeySpan Span(const std::vector<Key>& keys);
// ValueError unless there are `keys` rows of row_bytes.
void CheckRows(size_t count, size_t width, size_t keys, int64_t row_bytes);

// (ids, tables, rows) of a batch.
nb::tuple Arrays(RowBatch batch, int64_t row_bytes);

// Rows in chunks, (ids, tables, rows) each; keeps alive what they come from.
class Rows {
 public:
  Rows(std::shared_ptr<Store> store, std::unique_ptr<RowSource> source,
       int64_t row_bytes)
      : store_(std::move(store)),
        source_(std::move(source)),
        row_bytes_(row_bytes) {}

  nb::tuple Next();

 private:
  std::mutex mutex_;
  const std::shared_ptr<Store> store_;  // null: no store
  const std::unique_ptr<RowSource> source_;
  const int64_t row_bytes_;
};

}  // namespace oneemb
