#include "store/folder.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#include "store/crc32c.h"
#include "store/files.h"
#include "store/snapshot.h"

namespace oneemb {
namespace {

constexpr char kFormatName[] = "FORMAT";
constexpr char kNewFormatName[] = "FORMAT.new";
constexpr char kLockName[] = "LOCK";
constexpr uint64_t kStoreMagic = 0x31304F54534D450AULL;  // "\nEMSTO01"
constexpr uint16_t kStoreMajor = 1;

struct Format {
  uint64_t magic;
  uint16_t major;
  uint16_t minor;
  uint32_t crc;  // of the bytes before it
};
static_assert(sizeof(Format) == 16, "part of the format");

uint32_t CrcOf(const Format& format) {
  return Crc32c(&format, offsetof(Format, crc));
}

// Makes one folder; a new one survives a loss of power.
Status MakeFolder(Env* env, const std::string& path) {
  const Status made = env->MakeFolder(path);
  if (made.kind() == StatusKind::kAlreadyExists) return {};
  ONEEMB_RETURN_IF_ERROR(made);
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return env->SyncFolder(".");
  return env->SyncFolder(slash == 0 ? "/" : path.substr(0, slash));
}

Status MakeFolders(Env* env, const std::string& path) {
  Status made = MakeFolder(env, path);
  const size_t slash = path.rfind('/');
  const bool has_parent = slash != std::string::npos && slash > 0;
  if (made.kind() != StatusKind::kNotFound || !has_parent) return made;
  ONEEMB_RETURN_IF_ERROR(MakeFolders(env, path.substr(0, slash)));
  return MakeFolder(env, path);
}

Status CheckFormat(const std::string& path, const AlignedBuffer& bytes) {
  Format format{};
  if (bytes.size() == sizeof(format)) {
    std::memcpy(&format, bytes.data(), sizeof(format));
  }
  if (format.magic != kStoreMagic || format.crc != CrcOf(format)) {
    return {StatusKind::kCorruption, path + ": damaged"};
  }
  if (format.major != kStoreMajor) {
    return {StatusKind::kCorruption,
            path + ": a store of format " + std::to_string(format.major) +
                ", this version opens format " + std::to_string(kStoreMajor)};
  }
  return {};
}

// FORMAT is written before anything else is made, so a folder without it is
// ours only when it is empty.
Status CheckOurs(Env* env, const std::string& root) {
  std::vector<std::string> names;
  ONEEMB_RETURN_IF_ERROR(env->List(root, &names));
  if (std::find(names.begin(), names.end(), kFormatName) != names.end()) {
    return {};
  }
  for (const std::string& name : names) {
    if (name == kLockName || name == kNewFormatName) continue;
    std::string message = root;
    message.append(": not a store, and not empty (it has \"")
        .append(name)
        .append("\"); use a folder of the store's own");
    return {StatusKind::kInvalidArgument, std::move(message)};
  }
  return {};
}

Status WriteFormat(Env* env, const std::string& root) {
  const std::string fresh = JoinPath(root, kNewFormatName);
  const Status removed = env->Remove(fresh);
  if (removed.kind() != StatusKind::kNotFound) ONEEMB_RETURN_IF_ERROR(removed);
  Format format{kStoreMagic, kStoreMajor, 0, 0};
  format.crc = CrcOf(format);
  std::array<char, sizeof(format)> bytes{};
  std::memcpy(bytes.data(), &format, sizeof(format));
  ONEEMB_RETURN_IF_ERROR(WriteFile(env, fresh, bytes.data(), bytes.size()));
  ONEEMB_RETURN_IF_ERROR(env->Rename(fresh, JoinPath(root, kFormatName)));
  return env->SyncFolder(root);
}

Status EnsureFormat(Env* env, const std::string& root) {
  const std::string path = JoinPath(root, kFormatName);
  AlignedBuffer bytes;
  const Status read = ReadFile(env, path, sizeof(Format), &bytes);
  if (read.kind() == StatusKind::kNotFound) return WriteFormat(env, root);
  ONEEMB_RETURN_IF_ERROR(read);
  return CheckFormat(path, bytes);
}

}  // namespace

Status OpenFolder(Env* env, const std::string& root,
                  std::unique_ptr<FileLock>* lock) {
  std::unique_ptr<FileLock> held;
  ONEEMB_RETURN_IF_ERROR(MakeFolders(env, root));
  // Nothing is put into somebody else's folder, not even a lock.
  ONEEMB_RETURN_IF_ERROR(CheckOurs(env, root));
  ONEEMB_RETURN_IF_ERROR(env->Lock(JoinPath(root, kLockName), &held));
  ONEEMB_RETURN_IF_ERROR(EnsureFormat(env, root));
  for (const std::string& folder :
       {SegmentFolder(root), SnapshotFolder(root), TemporaryFolder(root)}) {
    ONEEMB_RETURN_IF_ERROR(EnsureFolder(env, folder));
  }
  ONEEMB_RETURN_IF_ERROR(ClearFolder(env, SegmentFolder(root)));
  ONEEMB_RETURN_IF_ERROR(ClearFolder(env, TemporaryFolder(root)));
  // snap/ must not be lost with the first snapshot in it.
  ONEEMB_RETURN_IF_ERROR(env->SyncFolder(root));
  *lock = std::move(held);
  return {};
}

Status CloseFolder(Env* env, const std::string& root, const FileLock& lock) {
  if (!lock.InPlace()) return {};
  return ClearFolder(env, SegmentFolder(root));
}

}  // namespace oneemb
