// The Python module: FFI handlers as capsules, and what import needs to know.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include <cstdint>

#include "cpu/ffi_util.h"
#include "cpu/handlers.h"
#include "cpu/memory.h"
#include "store_module.h"
#include "tier/handlers.h"
#include "tier/tier_api.h"

namespace nb = nanobind;

namespace {

nb::capsule Capsule(XLA_FFI_Handler* handler) {
  return nb::capsule(reinterpret_cast<void*>(handler));
}

nb::dict Handlers() {
  nb::dict handlers;
  handlers["oneemb_lookup"] = Capsule(oneemb::OneembLookup);
  handlers["oneemb_update"] = Capsule(oneemb::OneembUpdate);
  handlers["oneemb_global_norm"] = Capsule(oneemb::OneembGlobalNorm);
  handlers["oneemb_create"] = Capsule(oneemb::OneembCreate);
  handlers["oneemb_grow"] = Capsule(oneemb::OneembGrow);
  handlers["oneemb_read_rows"] = Capsule(oneemb::OneembReadRows);
  handlers["oneemb_write_rows"] = Capsule(oneemb::OneembWriteRows);
  handlers["oneemb_stage"] = Capsule(oneemb::OneembStage);
  handlers["oneemb_prefetch"] = Capsule(oneemb::OneembPrefetch);
  handlers["oneemb_lookup_cached"] = Capsule(oneemb::OneembLookupCached);
  handlers["oneemb_update_cached"] = Capsule(oneemb::OneembUpdateCached);
  handlers["oneemb_read_cached_rows"] = Capsule(oneemb::OneembReadCachedRows);
  handlers["oneemb_write_cached_rows"] = Capsule(oneemb::OneembWriteCachedRows);
  handlers["oneemb_write_down"] = Capsule(oneemb::OneembWriteDown);
  handlers["oneemb_flush"] = Capsule(oneemb::OneembFlush);
  return handlers;
}

bool CpuSupportsV3() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") != 0 &&
         __builtin_cpu_supports("fma") != 0 &&
         __builtin_cpu_supports("bmi2") != 0;
#else
  return false;
#endif
}

}  // namespace

NB_MODULE(ONEEMB_MODULE_NAME, m) {
  m.attr("ffi_api_version") =
      nb::make_tuple(XLA_FFI_API_MAJOR, XLA_FFI_API_MINOR);
  m.def("handlers", &Handlers, "FFI target names and their handlers.");
  m.def("cpu_supports_v3", &CpuSupportsV3,
        "Whether this CPU can run the module built for x86-64-v3.");
  m.def("keep_freed_memory", &oneemb::KeepFreedMemory,
        "Lets the C library keep freed memory; whether it can.");
  m.def(
      "tier_api",
      [] { return reinterpret_cast<uintptr_t>(oneemb::GetTierApi()); },
      "Address of what the CUDA library calls of this one.");
  m.def("set_num_threads", &oneemb::SetNumThreads, nb::arg("num_threads"),
        "Threads that a kernel splits its work for; 0: as many as XLA has.");
  // Objects that live until the interpreter ends are no leak worth a warning.
  nb::set_leak_warnings(false);
  oneemb::AddStore(m);
}
