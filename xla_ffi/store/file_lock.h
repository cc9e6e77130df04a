// One owner for a folder: a lock that excludes other processes and this one.
#pragma once

#include <memory>
#include <string>

#include "store/env.h"

namespace oneemb {

// flock on a file, which is created if need be and holds the owner's process id
// for messages, plus a list of this process's own locks: what a second lock of
// one process does differs between systems and between kinds of lock. A child
// made by fork does not inherit the lock. Thread-safe.
Status LockFile(const std::string& path, std::unique_ptr<FileLock>* lock);

}  // namespace oneemb
