// An Env in which one read waits at a gate, so that a test can do something
// else while it is underway.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "store/mutex.h"
#include "wrapped_env.h"

namespace oneemb {

class Gate {
 public:
  // The next read waits; those after it do not.
  void Close() { Set(true); }
  void Open() { Set(false); }

  // A read comes by.
  void Pass() {
    const MutexLock lock(mutex_);
    if (!closed_ || waiting_) return;
    waiting_ = true;
    changed_.NotifyAll();
    while (closed_) changed_.Wait(mutex_);
    waiting_ = false;
  }

  // Waits until a read stands before the closed gate.
  void WaitForReader() {
    const MutexLock lock(mutex_);
    while (!waiting_) changed_.Wait(mutex_);
  }

 private:
  void Set(bool closed) {
    const MutexLock lock(mutex_);
    closed_ = closed;
    changed_.NotifyAll();
  }

  Mutex mutex_;
  CondVar changed_;
  bool closed_ ONEEMB_GUARDED_BY(mutex_) = false;
  bool waiting_ ONEEMB_GUARDED_BY(mutex_) = false;
};

class GateEngine final : public IoEngine {
 public:
  GateEngine(std::unique_ptr<IoEngine> engine, std::shared_ptr<Gate> gate)
      : engine_(std::move(engine)), gate_(std::move(gate)) {}

  void Start(Io* io) override {
    if (!io->write) gate_->Pass();
    engine_->Start(io);
  }
  Io* Next() override { return engine_->Next(); }

 private:
  const std::unique_ptr<IoEngine> engine_;
  const std::shared_ptr<Gate> gate_;
};

class GateEnv final : public WrappedEnv {
 public:
  GateEnv(std::shared_ptr<Env> env, std::shared_ptr<Gate> gate)
      : WrappedEnv(std::move(env)), gate_(std::move(gate)) {}

  Status NewEngine(int depth, std::unique_ptr<IoEngine>* engine) override {
    std::unique_ptr<IoEngine> own;
    ONEEMB_RETURN_IF_ERROR(env()->NewEngine(depth, &own));
    *engine = std::make_unique<GateEngine>(std::move(own), gate_);
    return {};
  }

 private:
  const std::shared_ptr<Gate> gate_;
};

}  // namespace oneemb
