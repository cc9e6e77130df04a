// Memory for kernels: huge pages under large arrays, and scratch space that is
// kept from call to call.
#pragma once

#include <cstddef>
#include <cstdint>

namespace oneemb {

// Asks for huge pages under an array about to be written for the first time:
// first touch runs at 16 GB/s on 2 MiB pages and at 2.5 on 4 KiB ones. A hint;
// small arrays are left alone. Of large ones, which malloc takes from the
// system each time, the ends that lie in no huge page are made at once.
// Thread-safe.
void AdviseHugePages(void* data, int64_t bytes);

// Lets the C library keep memory that was freed, for the next allocation of
// that size, where it would give large blocks back to the system each time. For
// the whole process, from now on. False where the C library has no such
// setting.
bool KeepFreedMemory();

// Scratch memory, taken from a process-wide pool and given back when the
// object goes. Not cleared. data() is aligned to 64 bytes, and null when the
// system has no memory left. Thread-safe.
class Scratch {
 public:
  explicit Scratch(int64_t bytes);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  bool ok() const { return data_ != nullptr; }

  template <class T>
  T* As() const {
    return static_cast<T*>(data_);
  }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

}  // namespace oneemb
