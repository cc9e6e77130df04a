#include "store_arrays.h"

#include <nanobind/stl/string.h>

#include <cerrno>
#include <utility>

namespace oneemb {
namespace {

// Set once, when the module is made; lives as long as the process.
PyObject* store_error = nullptr;

[[noreturn]] void RaiseAs(PyObject* type, const nb::object& value) {
  PyErr_SetObject(type, value.ptr());
  throw nb::python_error();
}

// (errno, message) in the class of OSError that Python has for the errno.
[[noreturn]] void RaiseSystem(int error, const std::string& message) {
  RaiseAs(PyExc_OSError, nb::make_tuple(error, Text(message)));
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

}  // namespace

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

std::string PathOf(const nb::bytes& path) {
  return {path.c_str(), path.size()};
}

nb::object Text(const std::string& text) {
  PyObject* const decoded = PyUnicode_DecodeFSDefaultAndSize(
      text.data(), static_cast<Py_ssize_t>(text.size()));
  if (decoded == nullptr) throw nb::python_error();
  return nb::steal(decoded);
}

void AddStoreError(nb::module_* module) {
  const std::string name =
      nb::cast<std::string>(module->attr("__name__")) + ".StoreError";
  store_error = PyErr_NewException(name.c_str(), PyExc_RuntimeError, nullptr);
  if (store_error == nullptr) throw nb::python_error();
  module->attr("StoreError") = nb::handle(store_error);
}

void Raise(const Status& status) {
  const std::string& message = status.message();
  switch (status.kind()) {
    case StatusKind::kOk:
      return;
    case StatusKind::kInvalidArgument:
      RaiseAs(PyExc_ValueError, Text(message));
    case StatusKind::kNotFound:
      RaiseSystem(ENOENT, message);
    case StatusKind::kAlreadyExists:
      RaiseSystem(EEXIST, message);
    case StatusKind::kLocked:
      RaiseSystem(EAGAIN, message);
    case StatusKind::kNoSpace:
      // One errno for a full disk, a quota, a limit and a budget, as promised.
      RaiseSystem(ENOSPC, message);
    case StatusKind::kIoError:
      RaiseSystem(status.error() != 0 ? status.error() : EIO, message);
    case StatusKind::kNoLink:
      RaiseSystem(status.error() != 0 ? status.error() : EXDEV, message);
    case StatusKind::kNoMemory:
      RaiseAs(PyExc_MemoryError, Text(message));
    case StatusKind::kCorruption:
    case StatusKind::kUnavailable:
      RaiseAs(store_error, Text(message));
  }
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

nb::tuple Rows::Next() {
  RowBatch batch;
  RunReleased([&]() -> Status {
    const std::lock_guard<std::mutex> lock(mutex_);
    ONEEMB_RETURN_IF_ERROR(source_->Next(&batch));
    return batch.bad.empty() ? Status() : batch.bad.front();
  });
  if (batch.empty()) throw nb::stop_iteration();
  return Arrays(std::move(batch), row_bytes_);
}

}  // namespace oneemb
