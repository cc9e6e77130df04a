// Memory straight from the system: zeroed, on huge pages where it is large, and
// given back at once when it is no longer needed.
#pragma once

#include <cstdint>

namespace oneemb {

// Where pages come from. Thread-safe. Tests put one that runs dry in the place
// of the system's.
class PageSource {
 public:
  virtual ~PageSource() = default;
  PageSource() = default;
  PageSource(const PageSource&) = delete;
  PageSource& operator=(const PageSource&) = delete;

  // Zeroed memory, aligned to 64 bytes, or null when there is none left.
  virtual void* Map(int64_t bytes) = 0;
  // Takes back what Map(bytes) gave.
  virtual void Unmap(void* data, int64_t bytes) = 0;

  static PageSource* System();
};

// A stretch of memory. Movable; gives it back when destroyed.
class Pages {
 public:
  Pages() = default;
  ~Pages();
  Pages(Pages&& other) noexcept;
  Pages& operator=(Pages&& other) noexcept;
  Pages(const Pages&) = delete;
  Pages& operator=(const Pages&) = delete;

  // At least `bytes` > 0; data() is null when there was no memory.
  static Pages Map(PageSource* source, int64_t bytes);
  // What Map(bytes) takes from the system.
  static int64_t Rounded(int64_t bytes);

  char* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  PageSource* source_ = nullptr;
  char* data_ = nullptr;
  int64_t bytes_ = 0;
};

// From this size on, memory lies on huge pages where the system gives them, and
// begins at a boundary of them.
constexpr int64_t kHugePageBytes = int64_t{2} << 20;

}  // namespace oneemb
