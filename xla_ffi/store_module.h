// The store's part of the Python module.
#pragma once

#include <nanobind/nanobind.h>

namespace oneemb {

// Adds Store, its iterator and StoreError, and what AddSnapshots adds.
void AddStore(nanobind::module_& module);

// Adds what reads and writes snapshots without an open Store.
void AddSnapshots(nanobind::module_& module);

}  // namespace oneemb
