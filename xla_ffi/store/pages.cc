#include "store/pages.h"

#include <sys/mman.h>

#include <cstdlib>
#include <cstring>
#include <utility>

namespace oneemb {
namespace {

constexpr int64_t kPage = 4096;
constexpr int64_t kLine = 64;
// Below this, malloc's arena: a map of its own would waste half a page.
constexpr int64_t kSmallestMap = 16 * kPage;

int64_t RoundUp(int64_t bytes, int64_t unit) {
  return (bytes + unit - 1) / unit * unit;
}

void* MapSystem(int64_t bytes) {
  void* const data =
      mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE,
           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return data == MAP_FAILED ? nullptr : data;
}

void UnmapSystem(char* begin, const char* end) {
  if (begin != end) munmap(begin, static_cast<size_t>(end - begin));
}

// Maps a huge page more than is wanted and gives the ends back.
void* MapHuge(int64_t bytes) {
  auto* const data = static_cast<char*>(MapSystem(bytes + kHugePageBytes));
  if (data == nullptr) return nullptr;
  const int64_t past = static_cast<int64_t>(reinterpret_cast<uintptr_t>(data) %
                                            uintptr_t{kHugePageBytes});
  char* const begin = data + (past == 0 ? 0 : kHugePageBytes - past);
  UnmapSystem(data, begin);
  UnmapSystem(begin + bytes, data + bytes + kHugePageBytes);
  // A refusal costs speed only.
  (void)madvise(begin, static_cast<size_t>(bytes), MADV_HUGEPAGE);
  return begin;
}

class SystemPages final : public PageSource {
 public:
  void* Map(int64_t bytes) override {
    if (bytes >= kHugePageBytes) return MapHuge(bytes);
    if (bytes >= kSmallestMap) return MapSystem(bytes);
    void* const data = std::aligned_alloc(kLine, static_cast<size_t>(bytes));
    if (data != nullptr) memset(data, 0, static_cast<size_t>(bytes));
    return data;
  }

  void Unmap(void* data, int64_t bytes) override {
    if (bytes >= kSmallestMap) {
      munmap(data, static_cast<size_t>(bytes));
    } else {
      std::free(data);
    }
  }
};

}  // namespace

PageSource* PageSource::System() {
  static SystemPages* const pages = new SystemPages;  // outlives every thread
  return pages;
}

Pages::~Pages() {
  if (data_ != nullptr) source_->Unmap(data_, bytes_);
}

Pages::Pages(Pages&& other) noexcept
    : source_(other.source_),
      data_(std::exchange(other.data_, nullptr)),
      bytes_(std::exchange(other.bytes_, 0)) {}

Pages& Pages::operator=(Pages&& other) noexcept {
  std::swap(source_, other.source_);
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

Pages Pages::Map(PageSource* source, int64_t bytes) {
  Pages pages;
  pages.source_ = source;
  const int64_t rounded = Rounded(bytes);
  pages.data_ = static_cast<char*>(source->Map(rounded));
  if (pages.data_ != nullptr) pages.bytes_ = rounded;
  return pages;
}

int64_t Pages::Rounded(int64_t bytes) {
  return RoundUp(bytes, bytes < kSmallestMap ? kLine : kPage);
}

}  // namespace oneemb
