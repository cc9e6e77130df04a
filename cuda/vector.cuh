// Columns on their way between memory and registers, one or four at a time.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/convert.h"

namespace oneemb::gpu {

// kWidth columns of a row. Four go by one load where rows are aligned to that.
template <int kWidth>
struct Columns {
  float v[kWidth];
};

namespace vector_internal {
template <int kBytes>
struct Word;
template <>
struct Word<2> {
  using Type = uint16_t;
};
template <>
struct Word<4> {
  using Type = uint32_t;
};
template <>
struct Word<8> {
  using Type = uint2;
};
template <>
struct Word<16> {
  using Type = uint4;
};
}  // namespace vector_internal

// kWidth elements in memory, as one machine word.
template <class Access, int kWidth>
struct Packed {
  using Storage = typename Access::Storage;
  static constexpr int kColumns = kWidth;
  using Type =
      typename vector_internal::Word<kWidth* int{sizeof(Storage)}>::Type;

  static __device__ __forceinline__ Type Load(const Storage* from) {
    return *reinterpret_cast<const Type*>(from);
  }
  // From memory that no kernel writes while this one runs.
  static __device__ __forceinline__ Type LoadConstant(const Storage* from) {
    return __ldg(reinterpret_cast<const Type*>(from));
  }
  static __device__ __forceinline__ void Store(Storage* to, Type word) {
    *reinterpret_cast<Type*>(to) = word;
  }
  // What will not be read soon, and is the first to leave the cache.
  static __device__ __forceinline__ void StoreOnce(Storage* to, Type word) {
    __stcs(reinterpret_cast<Type*>(to), word);
  }
  static __device__ __forceinline__ Columns<kWidth> Unpack(Type word) {
    Storage elements[kWidth];
    memcpy(elements, &word, sizeof(word));
    Columns<kWidth> columns;
#pragma unroll
    for (int i = 0; i < kWidth; ++i) columns.v[i] = Access::Load(elements[i]);
    return columns;
  }
  static __device__ __forceinline__ Type Pack(const Columns<kWidth>& columns) {
    Storage elements[kWidth];
#pragma unroll
    for (int i = 0; i < kWidth; ++i) elements[i] = Access::Store(columns.v[i]);
    Type word;
    memcpy(&word, elements, sizeof(word));
    return word;
  }
};

template <int kWidth>
using PackedFloats = Packed<Float32Access, kWidth>;

template <int kWidth>
__device__ __forceinline__ Columns<kWidth> LoadFloats(const float* from) {
  return PackedFloats<kWidth>::Unpack(PackedFloats<kWidth>::Load(from));
}

template <int kWidth>
__device__ __forceinline__ void StoreFloats(float* to,
                                            const Columns<kWidth>& columns) {
  PackedFloats<kWidth>::Store(to, PackedFloats<kWidth>::Pack(columns));
}

}  // namespace oneemb::gpu
