// A folder on a real disk that is removed with this object.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>

#include "check.h"

namespace oneemb {

class TempFolder {
 public:
  // In the current folder, not /tmp: that is often memory, where O_DIRECT
  // checks no alignment.
  explicit TempFolder(const std::string& parent = ".") {
    std::string name = parent + "/oneemb_test_XXXXXX";
    CHECK(mkdtemp(name.data()) != nullptr);
    path_ = std::filesystem::absolute(name).string();
  }
  ~TempFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;

  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace oneemb
