// An Env that hands every call on to another: for tests that change one.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "store/env.h"

namespace oneemb {

class WrappedEnv : public Env {
 public:
  explicit WrappedEnv(std::shared_ptr<Env> env) : env_(std::move(env)) {}

  Status Open(const std::string& path, OpenMode mode, Caching caching,
              std::unique_ptr<File>* file) override {
    return env_->Open(path, mode, caching, file);
  }
  Status NewEngine(int depth, std::unique_ptr<IoEngine>* engine) override {
    return env_->NewEngine(depth, engine);
  }
  const char* engine_name() const override { return env_->engine_name(); }
  Status List(const std::string& folder,
              std::vector<std::string>* names) override {
    return env_->List(folder, names);
  }
  Status MakeFolder(const std::string& path) override {
    return env_->MakeFolder(path);
  }
  Status RemoveFolder(const std::string& path) override {
    return env_->RemoveFolder(path);
  }
  Status Remove(const std::string& path) override { return env_->Remove(path); }
  Status Link(const std::string& from, const std::string& to) override {
    return env_->Link(from, to);
  }
  Status Rename(const std::string& from, const std::string& to) override {
    return env_->Rename(from, to);
  }
  Status SyncFolder(const std::string& path) override {
    return env_->SyncFolder(path);
  }
  Status Lock(const std::string& path,
              std::unique_ptr<FileLock>* lock) override {
    return env_->Lock(path, lock);
  }
  uint64_t Random() override { return env_->Random(); }
  int64_t ProcessId() const override { return env_->ProcessId(); }

 protected:
  Env* env() const { return env_.get(); }

 private:
  const std::shared_ptr<Env> env_;
};

}  // namespace oneemb
