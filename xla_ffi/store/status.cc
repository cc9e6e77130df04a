#include "store/status.h"

#include <cerrno>
#include <system_error>

namespace oneemb {
namespace {

StatusKind KindOf(int error) {
  switch (error) {
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
      return StatusKind::kNoSpace;
    case ENOMEM:
      return StatusKind::kNoMemory;
    case ENOENT:
      return StatusKind::kNotFound;
    case EEXIST:
    case ENOTEMPTY:
      return StatusKind::kAlreadyExists;
    case EXDEV:
    case EMLINK:
    case EPERM:  // what link() says where a file system has no hard links
      return StatusKind::kNoLink;
    default:
      return StatusKind::kIoError;
  }
}

}  // namespace

Status SystemError(const char* operation, const std::string& path, int error) {
  return {KindOf(error),
          std::string(operation) + " " + path + ": " +
              std::generic_category().message(error),
          error};
}

}  // namespace oneemb
