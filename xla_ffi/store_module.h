// The store's part of the Python module.
#pragma once

#include <nanobind/nanobind.h>

namespace oneemb {

// Adds Store, its iterator and StoreError.
void AddStore(nanobind::module_& module);

}  // namespace oneemb
