// Transfers by io_uring: one ring an engine, driven by raw system calls.
//
// The submission and the completion queue are rings in memory shared with the
// kernel. Each side moves one end: loads of the kernel's ends acquire, stores
// of ours release.
#include "store/posix_engine.h"

#if defined(__linux__) && __has_include(<linux/io_uring.h>)

#include <linux/io_uring.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <system_error>

namespace oneemb {
namespace {

// One system call hands over this many transfers.
constexpr uint32_t kSubmitAtOnce = 32;

int Setup(uint32_t entries, io_uring_params* params) {
  return static_cast<int>(syscall(__NR_io_uring_setup, entries, params));
}

uint32_t Acquire(const uint32_t* x) {
  return __atomic_load_n(x, __ATOMIC_ACQUIRE);
}

void Release(uint32_t* x, uint32_t value) {
  __atomic_store_n(x, value, __ATOMIC_RELEASE);
}

// Memory shared with the kernel.
class Mapping {
 public:
  Mapping() = default;
  ~Mapping() {
    if (data_ != nullptr) munmap(data_, bytes_);
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;

  bool Map(int ring, size_t bytes, int64_t offset) {
    void* const data = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                            MAP_SHARED | MAP_POPULATE, ring, offset);
    if (data == MAP_FAILED) return false;
    data_ = data;
    bytes_ = bytes;
    return true;
  }

  template <class T>
  T* At(uint32_t offset) const {
    return reinterpret_cast<T*>(static_cast<char*>(data_) + offset);
  }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
};

class UringEngine final : public IoEngine {
 public:
  UringEngine() = default;
  ~UringEngine() override {
    if (ring_ >= 0) close(ring_);
  }
  UringEngine(const UringEngine&) = delete;
  UringEngine& operator=(const UringEngine&) = delete;

  Status Open(int depth);
  void Start(Io* io) override;
  Io* Next() override;

 private:
  bool HasReadAndWrite() const;
  Io* Completed();
  Io* FailUnsubmitted(int error);
  // 0 or an errno.
  int Enter(uint32_t wait_for);

  int ring_ = -1;
  Mapping submission_, completion_, entries_;
  uint32_t* sq_tail_ = nullptr;
  uint32_t* sq_array_ = nullptr;
  uint32_t sq_mask_ = 0;
  uint32_t* cq_head_ = nullptr;
  uint32_t* cq_tail_ = nullptr;
  uint32_t cq_mask_ = 0;
  io_uring_sqe* sqes_ = nullptr;
  io_uring_cqe* cqes_ = nullptr;
  uint32_t unsubmitted_ = 0;
};

Status UringEngine::Open(int depth) {
  io_uring_params params{};
  ring_ = Setup(static_cast<uint32_t>(depth), &params);
  if (ring_ < 0) {
    return {StatusKind::kUnavailable,
            "io_uring_setup: " + std::generic_category().message(errno)};
  }
  const size_t sq_bytes = params.sq_off.array + params.sq_entries * 4;
  const size_t cq_bytes =
      params.cq_off.cqes + params.cq_entries * sizeof(io_uring_cqe);
  if (!submission_.Map(ring_, sq_bytes, IORING_OFF_SQ_RING) ||
      !completion_.Map(ring_, cq_bytes, IORING_OFF_CQ_RING) ||
      !entries_.Map(ring_, params.sq_entries * sizeof(io_uring_sqe),
                    static_cast<int64_t>(IORING_OFF_SQES))) {
    return {StatusKind::kUnavailable,
            "mmap of an io_uring: " + std::generic_category().message(errno)};
  }
  sq_tail_ = submission_.At<uint32_t>(params.sq_off.tail);
  sq_array_ = submission_.At<uint32_t>(params.sq_off.array);
  sq_mask_ = *submission_.At<uint32_t>(params.sq_off.ring_mask);
  cq_head_ = completion_.At<uint32_t>(params.cq_off.head);
  cq_tail_ = completion_.At<uint32_t>(params.cq_off.tail);
  cq_mask_ = *completion_.At<uint32_t>(params.cq_off.ring_mask);
  cqes_ = completion_.At<io_uring_cqe>(params.cq_off.cqes);
  sqes_ = entries_.At<io_uring_sqe>(0);
  if (!HasReadAndWrite()) {
    return {StatusKind::kUnavailable,
            "this kernel's io_uring has no plain reads and writes"};
  }
  return {};
}

bool UringEngine::HasReadAndWrite() const {
  constexpr uint32_t kOps = 64;
  constexpr size_t kBytes =
      sizeof(io_uring_probe) + kOps * sizeof(io_uring_probe_op);
  alignas(io_uring_probe) std::array<char, kBytes> memory{};
  if (syscall(__NR_io_uring_register, ring_, IORING_REGISTER_PROBE,
              memory.data(), kOps) < 0) {
    return false;
  }
  const auto has = [&](size_t operation) {
    io_uring_probe_op answer{};
    std::memcpy(
        &answer,
        memory.data() + sizeof(io_uring_probe) + operation * sizeof(answer),
        sizeof(answer));
    return (answer.flags & IO_URING_OP_SUPPORTED) != 0;
  };
  return has(IORING_OP_READ) && has(IORING_OP_WRITE);
}

void UringEngine::Start(Io* io) {
  const uint32_t tail = *sq_tail_;
  const uint32_t place = tail & sq_mask_;
  io_uring_sqe& sqe = sqes_[place];
  sqe = {};
  sqe.opcode = io->write ? IORING_OP_WRITE : IORING_OP_READ;
  sqe.fd = static_cast<PosixFile*>(io->file)->fd();
  sqe.off = static_cast<uint64_t>(io->offset);
  sqe.addr = reinterpret_cast<uint64_t>(io->data);
  sqe.len = static_cast<uint32_t>(io->bytes);
  sqe.user_data = reinterpret_cast<uint64_t>(io);
  sq_array_[place] = place;
  Release(sq_tail_, tail + 1);
  // A refusal is met again by Next.
  if (++unsubmitted_ >= kSubmitAtOnce) (void)Enter(0);
}

int UringEngine::Enter(uint32_t wait_for) {
  const uint32_t flags = wait_for > 0 ? IORING_ENTER_GETEVENTS : 0U;
  const long done = syscall(__NR_io_uring_enter, ring_, unsubmitted_, wait_for,
                            flags, nullptr, 0);
  if (done < 0) return errno;
  unsubmitted_ -= static_cast<uint32_t>(done);
  return 0;
}

Io* UringEngine::Completed() {
  const uint32_t head = *cq_head_;
  if (head == Acquire(cq_tail_)) return nullptr;
  const io_uring_cqe& cqe = cqes_[head & cq_mask_];
  Io* const io = reinterpret_cast<Io*>(cqe.user_data);
  io->result = cqe.res;
  Release(cq_head_, head + 1);
  return io;
}

// Takes back the newest transfer that the kernel has not seen, or none.
Io* UringEngine::FailUnsubmitted(int error) {
  if (unsubmitted_ == 0) return nullptr;
  const uint32_t tail = *sq_tail_ - 1;
  Io* const io = reinterpret_cast<Io*>(sqes_[tail & sq_mask_].user_data);
  Release(sq_tail_, tail);
  --unsubmitted_;
  io->result = -error;
  return io;
}

Io* UringEngine::Next() {
  for (;;) {
    if (Io* const io = Completed()) return io;
    const int error = Enter(1);
    if (error == 0 || error == EINTR) continue;
    if (error == EAGAIN || error == EBUSY) {
      sched_yield();  // the kernel is short of memory, or has results for us
      continue;
    }
    // What the kernel has will still end; what it has not never will.
    if (Io* const io = FailUnsubmitted(error)) return io;
    sched_yield();
  }
}

}  // namespace

Status NewUringEngine(int depth, std::unique_ptr<IoEngine>* engine) {
  auto fresh = std::make_unique<UringEngine>();
  ONEEMB_RETURN_IF_ERROR(fresh->Open(depth));
  *engine = std::move(fresh);
  return {};
}

}  // namespace oneemb

#else  // no io_uring where this was built

namespace oneemb {

Status NewUringEngine(int depth, std::unique_ptr<IoEngine>* engine) {
  (void)depth;
  (void)engine;
  return {StatusKind::kUnavailable, "built without io_uring"};
}

}  // namespace oneemb

#endif
