// What a crash leaves on the simulated disk, and hands that reach into it.
#include <algorithm>
#include <functional>
#include <map>

#include "sim_env.h"

namespace oneemb {

// Brings `safe` into a state that the unsynced writes may leave.
void SimEnv::Lose(Node* node, Loss loss, std::mt19937_64* random) {
  if (loss == Loss::kDropAll) return;
  if (loss == Loss::kKeepAll) {
    node->safe = node->now;
    return;
  }
  const int64_t piece = loss == Loss::kTorn ? kIoAlignment : kBlockBytes;
  for (Write& write : node->pending) {
    if (write.data.empty() || loss == Loss::kRandom) {
      if ((*random)() % 2 == 0) ApplyWrite(write, &node->safe);
      continue;
    }
    const auto size = static_cast<int64_t>(write.data.size());
    for (int64_t at = 0; at < size; at += piece) {
      const int64_t end = std::min(at + piece, size);
      Write part{write.offset + at,
                 0,
                 {write.data.begin() + at, write.data.begin() + end}};
      const uint64_t fate = (*random)() % 4;
      if (fate == 0 || (loss == Loss::kTorn && fate < 2)) continue;
      if (loss == Loss::kGarbage && fate == 1) {
        std::fill(part.data.begin(), part.data.end(), 0);
      } else if (loss == Loss::kGarbage && fate == 2) {
        for (char& c : part.data) c = static_cast<char>((*random)());
      }
      ApplyWrite(part, &node->safe);
    }
  }
}

std::shared_ptr<SimEnv> SimEnv::AfterCrash(Loss loss, uint64_t seed) const {
  auto next = std::make_shared<SimEnv>(seed);
  const MutexLock lock(mutex_);
  const MutexLock next_lock(next->mutex_);
  std::mt19937_64 random(seed);
  // A copy of every node, so that one crash can be looked at in many ways.
  std::map<const Node*, NodePtr> copies;
  const std::function<NodePtr(const NodePtr&)> copy = [&](const NodePtr& node) {
    NodePtr& fresh = copies[node.get()];
    if (fresh) return fresh;
    fresh = std::make_shared<Node>();
    const NodePtr result = fresh;
    result->folder = node->folder;
    result->now = node->now;
    result->safe = node->safe;
    result->pending = node->pending;
    for (const auto& [name, child] : node->names_safe) {
      result->names_safe[name] = copy(child);
    }
    return result;
  };
  next->root_ = copy(root_);
  for (const NameChange& change : name_changes_) {
    const bool keep =
        loss == Loss::kKeepAll || (loss != Loss::kDropAll && random() % 2 == 0);
    if (!keep) continue;
    NameChange own = change;
    if (own.from_folder) own.from_folder = copy(own.from_folder);
    if (own.to_folder) own.to_folder = copy(own.to_folder);
    if (own.node) own.node = copy(own.node);
    Apply(own, true);
  }
  for (auto& entry : copies) {
    Node* const node = entry.second.get();
    Lose(node, loss, &random);
    node->now = node->safe;
    node->pending.clear();
    node->names_now = node->names_safe;
  }
  return next;
}

// --- tampering ---

std::vector<std::string> SimEnv::Files() const {
  const MutexLock lock(mutex_);
  std::vector<std::string> paths;
  const std::function<void(const Node&, const std::string&)> walk =
      [&](const Node& node, const std::string& path) {
        for (const auto& [name, child] : node.names_now) {
          std::string full = path;
          if (!full.empty()) full += '/';
          full += name;
          if (child->folder) {
            walk(*child, full);
          } else {
            paths.push_back(full);
          }
        }
      };
  walk(*root_, "");
  return paths;
}

std::vector<char> SimEnv::Content(const std::string& path) const {
  const MutexLock lock(mutex_);
  return Find(path)->now;
}

void SimEnv::SetContent(const std::string& path, std::vector<char> content) {
  const MutexLock lock(mutex_);
  Find(path)->now = std::move(content);
}

}  // namespace oneemb
