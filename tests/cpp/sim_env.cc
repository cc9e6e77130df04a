#include "sim_env.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <functional>
#include <set>

namespace oneemb {

class SimFile final : public File {
 public:
  SimFile(SimEnv* env, std::string path, SimEnv::NodePtr node, bool direct)
      : File(std::move(path)),
        env_(env),
        node_(std::move(node)),
        direct_(direct) {}

  bool direct() const override { return direct_; }
  Status Size(int64_t* bytes) const override {
    const MutexLock lock(env_->mutex_);
    ONEEMB_RETURN_IF_ERROR(env_->Begin("stat", path(), false, false));
    *bytes = static_cast<int64_t>(node_->now.size());
    return {};
  }
  Status Allocate(int64_t bytes) override {
    return env_->Resize(path(), node_.get(), bytes, true);
  }
  Status Truncate(int64_t bytes) override {
    return env_->Resize(path(), node_.get(), bytes, false);
  }
  Status Sync() override { return env_->SyncNode(path(), node_.get()); }
  Status SetReadOnly() override {
    const MutexLock lock(env_->mutex_);
    return env_->Begin("fchmod", path(), true, false);
  }

  SimEnv::Node* node() const { return node_.get(); }

 private:
  SimEnv* const env_;
  const SimEnv::NodePtr node_;
  const bool direct_;
};

// Carries out a transfer at once, and hands them back in any order.
class SimEngine final : public IoEngine {
 public:
  SimEngine(SimEnv* env, int depth) : env_(env), depth_(depth) {}

  void Start(Io* io) override {
    if (static_cast<int>(done_.size()) >= depth_) std::abort();
    env_->Transfer(io);
    done_.push_back(io);
  }
  Io* Next() override {
    const size_t chosen = env_->Random() % done_.size();
    std::swap(done_[chosen], done_.back());
    Io* const io = done_.back();
    done_.pop_back();
    return io;
  }

 private:
  SimEnv* const env_;
  const int depth_;
  std::vector<Io*> done_;
};

class SimLock final : public FileLock {
 public:
  SimLock(SimEnv* env, std::string path) : env_(env), path_(std::move(path)) {}
  ~SimLock() override {
    const MutexLock lock(env_->mutex_);
    auto& locks = env_->locks_;
    locks.erase(std::find(locks.begin(), locks.end(), path_));
  }
  SimLock(const SimLock&) = delete;
  SimLock& operator=(const SimLock&) = delete;

  bool InPlace() const override { return true; }

 private:
  SimEnv* const env_;
  const std::string path_;
};

SimEnv::SimEnv(uint64_t seed) : random_(seed) {
  const MutexLock lock(mutex_);
  root_ = std::make_shared<Node>();
  root_->folder = true;
}

SimEnv::~SimEnv() = default;

// --- faults ---

void SimEnv::CrashAtChange(int64_t k) {
  const MutexLock lock(mutex_);
  crash_at_ = k;
}

void SimEnv::FailAtCall(int64_t k, Fault fault, bool forever) {
  const MutexLock lock(mutex_);
  fail_at_ = k;
  fault_ = fault;
  forever_ = forever;
}

void SimEnv::Reset() {
  const MutexLock lock(mutex_);
  calls_ = changes_ = failures_ = 0;
  crash_at_ = fail_at_ = -1;
}

int64_t SimEnv::calls() const {
  const MutexLock lock(mutex_);
  return calls_;
}
int64_t SimEnv::changes() const {
  const MutexLock lock(mutex_);
  return changes_;
}
int64_t SimEnv::failures() const {
  const MutexLock lock(mutex_);
  return failures_;
}
bool SimEnv::crashed() const {
  const MutexLock lock(mutex_);
  return crashed_;
}
void SimEnv::SetCapacity(int64_t bytes) {
  const MutexLock lock(mutex_);
  capacity_ = bytes;
}

// Counts one call and decides its fate. Transfers are told by is_io that
// faulty_now_ is theirs to act on.
SimEnv::Verdict SimEnv::Count(bool changes, bool takes_space, bool is_io,
                              int* error) {
  *error = EIO;
  faulty_now_ = false;
  if (crashed_) return Verdict::kFail;
  const int64_t call = calls_++;
  if (changes && changes_++ == crash_at_) {
    crashed_ = true;
    return Verdict::kUnderway;
  }
  if (fail_at_ < 0 || call < fail_at_ || (call > fail_at_ && !forever_)) {
    return Verdict::kGo;
  }
  if (fault_ == Fault::kIoError || (fault_ == Fault::kNoSpace && takes_space)) {
    ++failures_;
    if (fault_ == Fault::kNoSpace) *error = ENOSPC;
    return Verdict::kFail;
  }
  faulty_now_ = is_io || fault_ == Fault::kNoLink;
  return Verdict::kGo;
}

Status SimEnv::Begin(const char* operation, const std::string& path,
                     bool changes, bool takes_space) {
  int error = 0;
  if (Count(changes, takes_space, false, &error) == Verdict::kGo) return {};
  return SystemError(operation, path, error);
}

// --- names ---

SimEnv::NodePtr SimEnv::Find(const std::string& path) const {
  NodePtr node = root_;
  for (size_t begin = 0; begin < path.size();) {
    const size_t end = std::min(path.find('/', begin), path.size());
    const std::string name = path.substr(begin, end - begin);
    begin = end + 1;
    if (name.empty() || name == ".") continue;
    const auto it = node->names_now.find(name);
    if (it == node->names_now.end()) return nullptr;
    node = it->second;
  }
  return node;
}

SimEnv::NodePtr SimEnv::Parent(const std::string& path,
                               std::string* name) const {
  const size_t slash = path.rfind('/');
  *name = path.substr(slash == std::string::npos ? 0 : slash + 1);
  return slash == std::string::npos ? root_ : Find(path.substr(0, slash));
}

void SimEnv::Apply(const NameChange& change, bool safe) {
  const auto names = [safe](Node* folder) -> std::map<std::string, NodePtr>& {
    return safe ? folder->names_safe : folder->names_now;
  };
  if (change.from_folder) names(change.from_folder.get()).erase(change.from);
  if (change.to_folder) {
    names(change.to_folder.get())[change.to] = change.node;
  }
}

void SimEnv::Change(NameChange change) {
  Apply(change, false);
  name_changes_.push_back(std::move(change));
}

Status SimEnv::Open(const std::string& path, OpenMode mode, Caching caching,
                    std::unique_ptr<File>* file) {
  const MutexLock lock(mutex_);
  const bool create = mode == OpenMode::kCreate;
  ONEEMB_RETURN_IF_ERROR(Begin("open", path, create, create));
  NodePtr node = Find(path);
  if (create && node) return SystemError("open", path, EEXIST);
  if (create) {
    std::string name;
    const NodePtr folder = Parent(path, &name);
    if (!folder) return SystemError("open", path, ENOENT);
    node = std::make_shared<Node>();
    Change({nullptr, "", folder, name, node});
  }
  if (!node) return SystemError("open", path, ENOENT);
  if (node->folder) return SystemError("open", path, EISDIR);
  *file =
      std::make_unique<SimFile>(this, path, node, caching == Caching::kDirect);
  return {};
}

Status SimEnv::NewEngine(int depth, std::unique_ptr<IoEngine>* engine) {
  *engine = std::make_unique<SimEngine>(this, depth);
  return {};
}

Status SimEnv::List(const std::string& folder,
                    std::vector<std::string>* names) {
  const MutexLock lock(mutex_);
  ONEEMB_RETURN_IF_ERROR(Begin("opendir", folder, false, false));
  const NodePtr node = Find(folder);
  if (!node) return SystemError("opendir", folder, ENOENT);
  if (!node->folder) return SystemError("opendir", folder, ENOTDIR);
  names->clear();
  for (const auto& entry : node->names_now) names->push_back(entry.first);
  return {};
}

Status SimEnv::MakeFolder(const std::string& path) {
  const MutexLock lock(mutex_);
  ONEEMB_RETURN_IF_ERROR(Begin("mkdir", path, true, true));
  std::string name;
  const NodePtr parent = Parent(path, &name);
  if (!parent) return SystemError("mkdir", path, ENOENT);
  if (Find(path)) return SystemError("mkdir", path, EEXIST);
  const auto node = std::make_shared<Node>();
  node->folder = true;
  Change({nullptr, "", parent, name, node});
  return {};
}

Status SimEnv::RemoveFolder(const std::string& path) {
  const MutexLock lock(mutex_);
  ONEEMB_RETURN_IF_ERROR(Begin("rmdir", path, true, false));
  const NodePtr node = Find(path);
  if (!node) return SystemError("rmdir", path, ENOENT);
  if (!node->folder) return SystemError("rmdir", path, ENOTDIR);
  if (!node->names_now.empty()) return SystemError("rmdir", path, ENOTEMPTY);
  std::string name;
  const NodePtr parent = Parent(path, &name);
  Change({parent, name, nullptr, "", nullptr});
  return {};
}

Status SimEnv::Remove(const std::string& path) {
  const MutexLock lock(mutex_);
  ONEEMB_RETURN_IF_ERROR(Begin("unlink", path, true, false));
  const NodePtr node = Find(path);
  if (!node) return SystemError("unlink", path, ENOENT);
  if (node->folder) return SystemError("unlink", path, EISDIR);
  std::string name;
  const NodePtr parent = Parent(path, &name);
  Change({parent, name, nullptr, "", nullptr});
  return {};
}

Status SimEnv::Link(const std::string& from, const std::string& to) {
  const MutexLock lock(mutex_);
  ONEEMB_RETURN_IF_ERROR(Begin("link", to, true, true));
  if (faulty_now_ && fault_ == Fault::kNoLink) {
    ++failures_;
    return SystemError("link", to, EXDEV);
  }
  const NodePtr node = Find(from);
  std::string name;
  const NodePtr parent = Parent(to, &name);
  if (!node || !parent) return SystemError("link", from, ENOENT);
  if (Find(to)) return SystemError("link", to, EEXIST);
  Change({nullptr, "", parent, name, node});
  return {};
}

Status SimEnv::Rename(const std::string& from, const std::string& to) {
  const MutexLock lock(mutex_);
  ONEEMB_RETURN_IF_ERROR(Begin("rename", to, true, true));
  const NodePtr node = Find(from);
  std::string from_name;
  std::string to_name;
  const NodePtr from_folder = Parent(from, &from_name);
  const NodePtr to_folder = Parent(to, &to_name);
  if (!node || !to_folder) return SystemError("rename", from, ENOENT);
  if (Find(to)) return SystemError("rename", to, EEXIST);
  Change({from_folder, from_name, to_folder, to_name, node});
  return {};
}

void SimEnv::MakeSafe(Node* node) {
  node->pending.clear();
  node->safe = node->now;
  node->names_safe = node->names_now;
  for (const auto& entry : node->names_now) MakeSafe(entry.second.get());
}

void SimEnv::SyncAll() {
  const MutexLock lock(mutex_);
  name_changes_.clear();
  MakeSafe(root_.get());
}

Status SimEnv::SyncFolder(const std::string& path) {
  const MutexLock lock(mutex_);
  ONEEMB_RETURN_IF_ERROR(Begin("fsync", path, true, false));
  const NodePtr folder = Find(path);
  if (!folder) return SystemError("open", path, ENOENT);
  std::vector<NameChange> rest;
  for (NameChange& change : name_changes_) {
    if (change.from_folder == folder || change.to_folder == folder) {
      Apply(change, true);
      // No file system brings a name back that went in the same journal.
      rest.erase(std::remove_if(rest.begin(), rest.end(),
                                [&](const NameChange& earlier) {
                                  return change.from_folder &&
                                         earlier.to_folder ==
                                             change.from_folder &&
                                         earlier.to == change.from;
                                }),
                 rest.end());
    } else {
      rest.push_back(std::move(change));
    }
  }
  name_changes_ = std::move(rest);
  return {};
}

Status SimEnv::Lock(const std::string& path, std::unique_ptr<FileLock>* lock) {
  const MutexLock guard(mutex_);
  ONEEMB_RETURN_IF_ERROR(Begin("open", path, true, true));
  if (std::find(locks_.begin(), locks_.end(), path) != locks_.end()) {
    return {StatusKind::kLocked, path + " is locked by this process (1)"};
  }
  std::string name;
  const NodePtr parent = Parent(path, &name);
  if (!parent) return SystemError("open", path, ENOENT);
  if (!Find(path)) {
    Change({nullptr, "", parent, name, std::make_shared<Node>()});
  }
  locks_.push_back(path);
  *lock = std::make_unique<SimLock>(this, path);
  return {};
}

uint64_t SimEnv::Random() {
  const MutexLock lock(mutex_);
  return random_();
}

// --- data ---

void SimEnv::ApplyWrite(const Write& write, std::vector<char>* content) {
  if (write.data.empty()) {
    content->resize(static_cast<size_t>(write.size));
    return;
  }
  const auto end = static_cast<size_t>(write.offset) + write.data.size();
  if (content->size() < end) content->resize(end);
  std::copy(write.data.begin(), write.data.end(),
            content->begin() + write.offset);
}

int64_t SimEnv::Used() const {
  std::set<const Node*> seen;
  int64_t bytes = 0;
  const std::function<void(const Node*)> walk = [&](const Node* node) {
    if (!seen.insert(node).second) return;
    bytes += static_cast<int64_t>(node->now.size());
    for (const auto& entry : node->names_now) walk(entry.second.get());
  };
  walk(root_.get());
  return bytes;
}

Status SimEnv::Resize(const std::string& path, Node* node, int64_t bytes,
                      bool takes_space) {
  const MutexLock lock(mutex_);
  ONEEMB_RETURN_IF_ERROR(Begin("resize", path, true, takes_space));
  const auto before = static_cast<int64_t>(node->now.size());
  if (takes_space && Used() + bytes - before > capacity_) {
    // As real file systems do: a part is allocated.
    node->now.resize(static_cast<size_t>((before + bytes) / 2));
    return SystemError("resize", path, ENOSPC);
  }
  node->pending.push_back({0, bytes, {}});
  ApplyWrite(node->pending.back(), &node->now);
  return {};
}

Status SimEnv::SyncNode(const std::string& path, Node* node) {
  const MutexLock lock(mutex_);
  ONEEMB_RETURN_IF_ERROR(Begin("fsync", path, true, false));
  node->safe = node->now;
  node->pending.clear();
  return {};
}

void SimEnv::Transfer(Io* io) {
  const auto* const file = static_cast<SimFile*>(io->file);
  const MutexLock lock(mutex_);
  const auto misaligned = [](int64_t x) { return x % kIoAlignment != 0; };
  int error = 0;
  const Verdict verdict = Count(io->write, io->write, true, &error);
  if (verdict == Verdict::kFail) {
    io->result = -error;
  } else if (file->direct() &&
             (misaligned(io->offset) || misaligned(io->bytes) ||
              misaligned(static_cast<int64_t>(
                  reinterpret_cast<uintptr_t>(io->data))))) {
    io->result = -EINVAL;
  } else if (faulty_now_ && fault_ == Fault::kInterrupted) {
    ++failures_;
    io->result = random_() % 2 == 0 ? -EINTR : -EAGAIN;
  } else if (faulty_now_ && fault_ == Fault::kShort && io->bytes > 1) {
    ++failures_;
    const int64_t parts[] = {1, std::min<int64_t>(511, io->bytes - 1),
                             io->bytes / 2};
    Move(io, file->node(), parts[random_() % 3]);
  } else {
    Move(io, file->node(), io->bytes);
    if (verdict == Verdict::kUnderway) io->result = -EIO;
  }
}

void SimEnv::Move(Io* io, Node* node, int64_t bytes) {
  const auto size = static_cast<int64_t>(node->now.size());
  const bool flip = faulty_now_ && fault_ == Fault::kFlipBit;
  const uint64_t bit = random_() % static_cast<uint64_t>(bytes * 8);
  const auto flip_in = [bit](char* data) {
    data[bit / 8] = static_cast<char>(data[bit / 8] ^ (1 << (bit % 8)));
  };
  if (!io->write) {
    io->result = std::clamp<int64_t>(size - io->offset, 0, bytes);
    std::memcpy(io->data, node->now.data() + (io->result > 0 ? io->offset : 0),
                static_cast<size_t>(io->result));
    if (flip && io->result == bytes) {
      ++failures_;
      flip_in(io->data);
    }
    return;
  }
  io->result = bytes;
  if (faulty_now_ && fault_ == Fault::kLostWrite) {
    ++failures_;
    return;
  }
  const int64_t grows = std::max<int64_t>(0, io->offset + bytes - size);
  if (grows > 0 && Used() + grows > capacity_) {
    io->result = -ENOSPC;
    return;
  }
  Write write{io->offset, 0, std::vector<char>(io->data, io->data + bytes)};
  if (flip) {
    ++failures_;
    flip_in(write.data.data());
  }
  ApplyWrite(write, &node->now);
  node->pending.push_back(std::move(write));
}

}  // namespace oneemb
