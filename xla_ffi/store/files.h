// Whole files and folders, in terms of an Env.
#pragma once

#include <string>

#include "store/aligned_buffer.h"
#include "store/env.h"
#include "store/status.h"

namespace oneemb {

// "folder/name".
std::string JoinPath(const std::string& folder, const std::string& name);

// kCorruption when the file is larger than `most` bytes.
Status ReadFile(Env* env, const std::string& path, int64_t most,
                AlignedBuffer* content);

// Creates the file and syncs it; its name still needs SyncFolder. Whatever was
// created is left behind on an error.
Status WriteFile(Env* env, const std::string& path, const char* data,
                 int64_t bytes);

// Makes the folder unless it is there.
Status EnsureFolder(Env* env, const std::string& path);

// Removes everything in a folder: files, and folders of files.
Status ClearFolder(Env* env, const std::string& path);
// ClearFolder, then the folder itself. Ok when there is none.
Status RemoveTree(Env* env, const std::string& path);

// A hard link, or, where there can be none, a synced copy.
Status LinkOrCopy(Env* env, const std::string& from, const std::string& to);

}  // namespace oneemb
