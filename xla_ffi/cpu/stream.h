// Copies of rows: short ones inlined, since a call takes as long.
//
// Those that stream go past the caches, for outputs larger than the caches
// hold: they save reading each line before it is written, and leave the table's
// own lines where they are.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "core/macros.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace oneemb {

#if defined(__AVX__)
constexpr int64_t kStreamFloats = 8;
#else
constexpr int64_t kStreamFloats = 4;
#endif

// Whether StreamFloats can copy `n` floats to `out` and every n floats after.
inline bool CanStream(const void* out, int64_t n) {
#if defined(__SSE2__)
  constexpr auto kBytes = static_cast<uintptr_t>(kStreamFloats * 4);
  return n % kStreamFloats == 0 &&
         reinterpret_cast<uintptr_t>(out) % kBytes == 0;
#else
  (void)out;
  (void)n;
  return false;
#endif
}

// Copies n floats. Needs CanStream, and FinishStream after the last copy.
inline void StreamFloats(const float* ONEEMB_RESTRICT in, int64_t n,
                         float* ONEEMB_RESTRICT out) {
  for (int64_t c = 0; c < n; c += kStreamFloats) {
#if defined(__AVX__)
    _mm256_stream_ps(out + c, _mm256_loadu_ps(in + c));
#elif defined(__SSE2__)
    _mm_stream_ps(out + c, _mm_loadu_ps(in + c));
#endif
  }
}

// Copies n floats. A fence, of no instruction, keeps g++ from making one call
// of a loop.
inline void CopyFloats(const float* ONEEMB_RESTRICT in, int64_t n,
                       float* ONEEMB_RESTRICT out) {
  constexpr int64_t kShort = 32;  // up to two lines a call takes longer
  if (n > kShort) {
    std::memcpy(out, in, static_cast<size_t>(n) * sizeof(float));
    return;
  }
  int64_t c = 0;
#if defined(__AVX__)
  for (; c + 8 <= n; c += 8) {
    _mm256_storeu_ps(out + c, _mm256_loadu_ps(in + c));
    std::atomic_signal_fence(std::memory_order_seq_cst);
  }
#endif
#if defined(__SSE2__)
  for (; c + 4 <= n; c += 4) {
    _mm_storeu_ps(out + c, _mm_loadu_ps(in + c));
    std::atomic_signal_fence(std::memory_order_seq_cst);
  }
#endif
  for (; c < n; ++c) {
    out[c] = in[c];
    std::atomic_signal_fence(std::memory_order_seq_cst);
  }
}

// Orders streamed stores before whatever tells others that they are there.
inline void FinishStream() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

}  // namespace oneemb
