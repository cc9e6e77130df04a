// Vectors in memory from a BufferSource, as a device may want it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

#include "store/buffer_source.h"
#include "store/heap_source.h"

namespace oneemb {

// Elements that are added without a value are not cleared.
template <class T>
class SourceAllocator {
 public:
  using value_type = T;
  using propagate_on_container_move_assignment = std::true_type;
  using propagate_on_container_swap = std::true_type;
  static_assert(std::is_trivially_destructible_v<T>);

  explicit SourceAllocator(BufferSource* source = HeapSource())
      : source_(source) {}

  BufferSource* source() const { return source_; }

  T* allocate(size_t count) {
    char* const data = source_->Take(static_cast<int64_t>(count * sizeof(T)));
    if (data == nullptr) throw std::bad_alloc();
    return reinterpret_cast<T*>(data);
  }
  void deallocate(T* data, size_t count) {
    source_->Return(reinterpret_cast<char*>(data),
                    static_cast<int64_t>(count * sizeof(T)));
  }
  template <class U>
  void construct(U* at) {
    ::new (static_cast<void*>(at)) U;
  }
  template <class U, class... Arguments>
  void construct(U* at, Arguments&&... arguments) {
    ::new (static_cast<void*>(at)) U{std::forward<Arguments>(arguments)...};
  }

  friend bool operator==(SourceAllocator a, SourceAllocator b) {
    return a.source_ == b.source_;
  }
  friend bool operator!=(SourceAllocator a, SourceAllocator b) {
    return !(a == b);
  }

 private:
  BufferSource* source_;
};

template <class T>
using SourceVector = std::vector<T, SourceAllocator<T>>;

}  // namespace oneemb
