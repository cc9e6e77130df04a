#include "store/files.h"

#include <algorithm>

#include "store/io_queue.h"

namespace oneemb {
namespace {

// Large enough to run at a disk's full rate, small enough to keep around.
constexpr int64_t kPieceBytes = int64_t{1} << 20;

Status MoveBytes(IoQueue* queue, File* file, bool write, int64_t offset,
                 char* data, int64_t bytes) {
  for (int64_t done = 0; done < bytes; done += kPieceBytes) {
    Transfer transfer;
    transfer.file = file;
    transfer.write = write;
    transfer.offset = offset + done;
    transfer.data = data + done;
    transfer.bytes = std::min(kPieceBytes, bytes - done);
    ONEEMB_RETURN_IF_ERROR(queue->Run(&transfer));
  }
  return {};
}

// A file of files: only folders refuse Remove otherwise.
Status RemoveAny(Env* env, const std::string& path) {
  Status removed = env->Remove(path);
  if (removed.ok() || removed.kind() == StatusKind::kNotFound) return {};
  std::vector<std::string> names;
  if (!env->List(path, &names).ok()) return removed;
  for (const std::string& name : names) {
    ONEEMB_RETURN_IF_ERROR(env->Remove(JoinPath(path, name)));
  }
  return env->RemoveFolder(path);
}

Status CopyFile(Env* env, const std::string& from, const std::string& to) {
  std::unique_ptr<File> source;
  std::unique_ptr<File> target;
  std::unique_ptr<IoQueue> queue;
  AlignedBuffer piece;
  int64_t bytes = 0;
  ONEEMB_RETURN_IF_ERROR(
      env->Open(from, OpenMode::kRead, Caching::kCached, &source));
  ONEEMB_RETURN_IF_ERROR(source->Size(&bytes));
  ONEEMB_RETURN_IF_ERROR(IoQueue::Open(env, 1, &queue));
  ONEEMB_RETURN_IF_ERROR(piece.Resize(kPieceBytes));
  ONEEMB_RETURN_IF_ERROR(
      env->Open(to, OpenMode::kCreate, Caching::kCached, &target));
  for (int64_t done = 0; done < bytes; done += kPieceBytes) {
    const int64_t now = std::min(kPieceBytes, bytes - done);
    ONEEMB_RETURN_IF_ERROR(
        MoveBytes(queue.get(), source.get(), false, done, piece.data(), now));
    ONEEMB_RETURN_IF_ERROR(
        MoveBytes(queue.get(), target.get(), true, done, piece.data(), now));
  }
  ONEEMB_RETURN_IF_ERROR(target->Sync());
  return target->SetReadOnly();
}

}  // namespace

std::string JoinPath(const std::string& folder, const std::string& name) {
  return folder + "/" + name;
}

Status ReadFile(Env* env, const std::string& path, int64_t most,
                AlignedBuffer* content) {
  std::unique_ptr<File> file;
  std::unique_ptr<IoQueue> queue;
  int64_t bytes = 0;
  ONEEMB_RETURN_IF_ERROR(
      env->Open(path, OpenMode::kRead, Caching::kCached, &file));
  ONEEMB_RETURN_IF_ERROR(file->Size(&bytes));
  if (bytes > most) {
    return {StatusKind::kCorruption,
            path + ": " + std::to_string(bytes) + " bytes, more than the " +
                std::to_string(most) + " that such a file can have"};
  }
  ONEEMB_RETURN_IF_ERROR(content->Resize(bytes));
  ONEEMB_RETURN_IF_ERROR(IoQueue::Open(env, 1, &queue));
  return MoveBytes(queue.get(), file.get(), false, 0, content->data(), bytes);
}

Status WriteFile(Env* env, const std::string& path, const char* data,
                 int64_t bytes) {
  std::unique_ptr<File> file;
  std::unique_ptr<IoQueue> queue;
  ONEEMB_RETURN_IF_ERROR(IoQueue::Open(env, 1, &queue));
  ONEEMB_RETURN_IF_ERROR(
      env->Open(path, OpenMode::kCreate, Caching::kCached, &file));
  // A write only reads this memory.
  ONEEMB_RETURN_IF_ERROR(MoveBytes(queue.get(), file.get(), true, 0,
                                   const_cast<char*>(data), bytes));
  return file->Sync();
}

Status EnsureFolder(Env* env, const std::string& path) {
  Status made = env->MakeFolder(path);
  if (made.kind() != StatusKind::kAlreadyExists) return made;
  return {};
}

Status ClearFolder(Env* env, const std::string& path) {
  std::vector<std::string> names;
  ONEEMB_RETURN_IF_ERROR(env->List(path, &names));
  for (const std::string& name : names) {
    ONEEMB_RETURN_IF_ERROR(RemoveAny(env, JoinPath(path, name)));
  }
  return {};
}

Status RemoveTree(Env* env, const std::string& path) {
  const Status cleared = ClearFolder(env, path);
  if (cleared.kind() == StatusKind::kNotFound) return {};
  ONEEMB_RETURN_IF_ERROR(cleared);
  return env->RemoveFolder(path);
}

Status LinkOrCopy(Env* env, const std::string& from, const std::string& to) {
  Status linked = env->Link(from, to);
  if (linked.kind() != StatusKind::kNoLink) return linked;
  return CopyFile(env, from, to);
}

}  // namespace oneemb
