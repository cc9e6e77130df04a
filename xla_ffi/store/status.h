// How a call of the store ended: what kind of thing went wrong, and a sentence
// for the person who has to act on it.
#pragma once

#include <string>
#include <utility>

namespace oneemb {

enum class StatusKind {
  kOk,
  kInvalidArgument,  // the caller's mistake; nothing was changed
  kNotFound,
  kAlreadyExists,
  kLocked,      // another Store owns the directory
  kNoSpace,     // the disk or a budget is full
  kNoMemory,    // the system has no memory left
  kIoError,     // the system refused a read, a write or a file operation
  kNoLink,      // no hard link here: another file system, or too many
  kCorruption,  // bytes that are not what was written
  kUnavailable  // this object cannot be used: after a fork, for one
};

// Cheap when it is ok: no allocation.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(StatusKind kind, std::string message, int error = 0)
      : kind_(kind), error_(error), message_(std::move(message)) {}

  bool ok() const { return kind_ == StatusKind::kOk; }
  StatusKind kind() const { return kind_; }
  // The object concerned (a path, a key, an option) and the fact.
  const std::string& message() const { return message_; }
  // The errno of the system call that failed, or 0 where none did.
  int error() const { return error_; }

 private:
  StatusKind kind_ = StatusKind::kOk;
  int error_ = 0;
  std::string message_;
};

// A failed system call: "open /ssd/t/LOCK: Permission denied". `error` is an
// errno; a full disk, a missing and an existing file get kinds of their own.
Status SystemError(const char* operation, const std::string& path, int error);

}  // namespace oneemb

// Ends the calling function with the status of `call` unless it is ok.
#define ONEEMB_RETURN_IF_ERROR(call)                                      \
  do {                                                                    \
    if (::oneemb::Status status_of_call = (call); !status_of_call.ok()) { \
      return status_of_call;                                              \
    }                                                                     \
  } while (false)
