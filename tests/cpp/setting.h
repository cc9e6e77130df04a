// Numbers that make a test longer than `make test` wants it.
#pragma once

#include <cstdint>
#include <cstdlib>

namespace oneemb {

// The value of an environment variable, or `otherwise` where there is none.
inline uint64_t Setting(const char* name, uint64_t otherwise) {
  const char* const text = std::getenv(name);  // NOLINT(concurrency-mt-unsafe)
  return text == nullptr ? otherwise : std::strtoull(text, nullptr, 10);
}

}  // namespace oneemb
