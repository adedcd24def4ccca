#include "tiers/uring_device.h"

#include <liburing.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <thread>
#include <utility>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/synchronization/mutex.h"
#include "absl/synchronization/notification.h"
#include "proto/types/check.h"

namespace kvd {
namespace {

constexpr uint64_t kRegisteredMax = 1u << 30;  // Of one buffer; the kernel's.
constexpr unsigned kRingEntries = 256;
constexpr uint64_t kWake = uint64_t{1} << 63;  // user_data of reading the eventfd.
constexpr int kFileIndex = 0;                  // Of the registered files.
constexpr int kEventIndex = 1;
// How often deadlines of waiting jobs are looked at while a device does not answer.
constexpr long kTickNanos = 10 * kMillisecond;

// The memory that the kernel has pinned for us.
class RegisteredMemory {
 public:
  // Empty: registered. Otherwise why not; nothing is registered then.
  std::string Register(io_uring& ring, absl::Span<const absl::Span<std::byte>> memory) {
    for (absl::Span<std::byte> span : memory) {
      for (; !span.empty(); span.remove_prefix(std::min<size_t>(span.size(), kRegisteredMax))) {
        buffers_.push_back({span.data(), std::min<size_t>(span.size(), kRegisteredMax)});
      }
    }
    if (buffers_.empty()) return "";
    std::sort(buffers_.begin(), buffers_.end(),
              [](const iovec& a, const iovec& b) { return a.iov_base < b.iov_base; });
    const int result =
        io_uring_register_buffers(&ring, buffers_.data(), static_cast<unsigned>(buffers_.size()));
    if (result == 0) return "";
    buffers_.clear();
    return result == -ENOMEM
               ? "memory is not registered with io_uring: RLIMIT_MEMLOCK is too small for it"
               : absl::StrCat("memory is not registered with io_uring: ", std::strerror(-result));
  }

  // The buffer that has all of `bytes`.
  std::optional<int> IndexOf(absl::Span<std::byte> bytes) const {
    auto after = std::upper_bound(
        buffers_.begin(), buffers_.end(), bytes.data(),
        [](const std::byte* address, const iovec& buffer) { return address < buffer.iov_base; });
    if (after == buffers_.begin()) return std::nullopt;
    const iovec& buffer = *--after;
    const auto* end = static_cast<const std::byte*>(buffer.iov_base) + buffer.iov_len;
    if (bytes.data() + bytes.size() > end) return std::nullopt;
    return static_cast<int>(after - buffers_.begin());
  }

 private:
  std::vector<iovec> buffers_;  // By address.
};

}  // namespace

class UringDevice::Worker {
 public:
  Worker(std::shared_ptr<const DeviceFile> file, Options options, const Clock& clock)
      : file_(std::move(file)),
        options_(std::move(options)),
        clock_(clock),
        queue_(options_.limits),
        wake_fd_(eventfd(0, EFD_CLOEXEC)) {}
  ~Worker() { close(wake_fd_); }

  // Starts the thread, which makes the ring: it alone may use it.
  absl::Status Start();
  void SetSink(Sink sink) { sink_ = std::move(sink); }
  bool Submit(NvmeJob job);
  // The thread has ended when this returns.
  void Close();
  const std::vector<std::string>& notes() const { return notes_; }

 private:
  // A job that the kernel has.
  struct Active {
    NvmeQueue::Entry entry;
    std::vector<NvmeTransfer> transfers;
    size_t open = 0;  // Transfers that have not ended.
    int error = 0;    // Of the first that failed.
  };
  struct Ended {
    NvmeQueue::Entry entry;
    int error = 0;
  };
  // What one look into the queue gave.
  struct Turn {
    std::vector<NvmeQueue::Entry> begun;
    std::vector<NvmeQueue::Entry> expired;
    std::vector<Ended> refused;  // Never begun: not valid, or the device is being closed.
    bool closing = false;
    bool busy = false;  // The kernel has jobs: others may come to wait for them, and expire.
  };

  void Run(absl::Notification& started, absl::Status& status);
  absl::Status MakeRing();
  void Serve();
  Turn TakeTurn();
  void Begin(NvmeQueue::Entry entry);
  void Prepare(uint32_t slot, size_t transfer);
  void ArmWake();
  io_uring_sqe* NextSqe();
  void Wait(bool tick);
  void Reap();
  void TakeResult(uint64_t user_data, int result);
  void Tell(const NvmeDone& done) {
    if (sink_) sink_(done);
  }

  const std::shared_ptr<const DeviceFile> file_;
  const Options options_;
  const Clock& clock_;
  Sink sink_;  // Set before the first job, whose hand-over orders it.
  std::vector<std::string> notes_;

  absl::Mutex mutex_;
  NvmeQueue queue_ ABSL_GUARDED_BY(mutex_);
  bool asleep_ ABSL_GUARDED_BY(mutex_) = false;  // Or about to be, with nothing left to begin.
  bool closing_ ABSL_GUARDED_BY(mutex_) = false;

  const int wake_fd_;
  std::thread thread_;

  // The thread's own.
  io_uring ring_ = {};
  RegisteredMemory memory_;
  uint64_t wake_count_ = 0;  // Where the eventfd is read to.
  bool wake_armed_ = false;
  std::vector<std::unique_ptr<Active>> active_;  // By slot; null: free.
  std::vector<uint32_t> free_slots_;
  std::vector<Ended> ended_;
};

absl::Status UringDevice::Worker::Start() {
  if (wake_fd_ < 0) return absl::UnavailableError(absl::StrCat("eventfd: ", std::strerror(errno)));
  absl::Notification started;
  absl::Status status;
  thread_ = std::thread([this, &started, &status] { Run(started, status); });
  started.WaitForNotification();
  if (!status.ok()) thread_.join();
  return status;
}

bool UringDevice::Worker::Submit(NvmeJob job) {
  const Nanos now = clock_.Now();
  bool wake = false;
  {
    absl::MutexLock lock(&mutex_);
    if (!queue_.Push(std::move(job), now)) return false;
    wake = asleep_ && queue_.MayBegin();
    if (wake) asleep_ = false;
  }
  if (wake) eventfd_write(wake_fd_, 1);
  return true;
}

void UringDevice::Worker::Close() {
  {
    absl::MutexLock lock(&mutex_);
    closing_ = true;
  }
  eventfd_write(wake_fd_, 1);
  thread_.join();
}

void UringDevice::Worker::Run(absl::Notification& started, absl::Status& status) {
  pthread_setname_np(pthread_self(), "kvd-nvme");
  status = MakeRing();
  const bool ok = status.ok();
  started.Notify();  // `status` is the starter's from here on.
  if (!ok) return;
  Serve();
  io_uring_queue_exit(&ring_);
}

absl::Status UringDevice::Worker::MakeRing() {
  int result = io_uring_queue_init(kRingEntries, &ring_,
                                   IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN);
  if (result == -EINVAL) result = io_uring_queue_init(kRingEntries, &ring_, 0);  // Before 6.1.
  if (result < 0) {
    return absl::UnavailableError(absl::StrCat(
        "io_uring is refused here (kernel.io_uring_disabled, a seccomp filter or a limit): ",
        std::strerror(-result)));
  }
  const int files[] = {file_->fd(), wake_fd_};
  result = io_uring_register_files(&ring_, files, 2);
  if (result == 0 && (ring_.features & IORING_FEAT_EXT_ARG) == 0) result = -ENOSYS;
  if (result < 0) {
    io_uring_queue_exit(&ring_);
    return absl::UnavailableError(
        absl::StrCat("io_uring of this kernel is too old: ", std::strerror(-result)));
  }
  std::string note = memory_.Register(ring_, options_.memory);
  if (!note.empty()) notes_.push_back(absl::StrCat(file_->path(), ": ", note));
  return absl::OkStatus();
}

void UringDevice::Worker::Serve() {
  std::optional<Nanos> give_up;
  while (true) {
    Turn turn = TakeTurn();
    for (NvmeQueue::Entry& entry : turn.begun) Begin(std::move(entry));
    ArmWake();
    io_uring_submit(&ring_);  // What it leaves (a busy ring) goes with the next call.
    // The disk works again; now what takes time.
    for (const Ended& ended : std::exchange(ended_, {})) {
      Tell(EndJob(ended.entry, ended.error, clock_));
    }
    for (const Ended& refused : turn.refused) Tell(EndJob(refused.entry, refused.error, clock_));
    for (const NvmeQueue::Entry& entry : turn.expired) {
      Tell({.tag = entry.job.tag,
            .outcome = NvmeOutcome::kExpired,
            .took = clock_.Now() - entry.submitted});
    }
    if (turn.closing) {
      if (!give_up.has_value()) give_up = clock_.Now() + options_.close_wait;
      if (free_slots_.size() == active_.size() || clock_.Now() >= *give_up) return;
    }
    Wait(turn.busy || turn.closing);
    Reap();
  }
}

UringDevice::Worker::Turn UringDevice::Worker::TakeTurn() {
  Turn turn;
  const Nanos now = clock_.Now();
  absl::MutexLock lock(&mutex_);
  for (const Ended& ended : ended_) queue_.End(ended.entry);
  turn.closing = closing_;
  std::optional<NvmeQueue::Entry> entry;
  while ((entry = queue_.TakeExpired(now)).has_value()) turn.expired.push_back(*std::move(entry));
  while (closing_ && (entry = queue_.TakeWaiting()).has_value()) {
    turn.refused.push_back({*std::move(entry), ECANCELED});
  }
  while ((entry = queue_.Begin()).has_value()) {
    if (IsValidJob(entry->job, file_->size_bytes())) {
      turn.begun.push_back(*std::move(entry));
    } else {
      queue_.End(*entry);
      turn.refused.push_back({*std::move(entry), EINVAL});
    }
  }
  turn.busy = queue_.begun() > 0;
  asleep_ = true;
  return turn;
}

void UringDevice::Worker::Begin(NvmeQueue::Entry entry) {
  auto active = std::make_unique<Active>();
  uint64_t offset = entry.job.offset;
  for (absl::Span<std::byte> piece : entry.job.pieces) {
    active->transfers.emplace_back(entry.job.kind, offset, piece);
    offset += piece.size();
  }
  if (entry.job.kind == NvmeJob::Kind::kSync) {
    active->transfers.emplace_back(entry.job.kind, 0, absl::Span<std::byte>());
  }
  active->open = active->transfers.size();
  active->entry = std::move(entry);
  if (free_slots_.empty()) {
    free_slots_.push_back(static_cast<uint32_t>(active_.size()));
    active_.emplace_back();
  }
  const uint32_t slot = free_slots_.back();
  free_slots_.pop_back();
  active_[slot] = std::move(active);
  for (size_t i = 0; i < active_[slot]->transfers.size(); ++i) Prepare(slot, i);
}

void UringDevice::Worker::Prepare(uint32_t slot, size_t index) {
  const NvmeTransfer& transfer = active_[slot]->transfers[index];
  const absl::Span<std::byte> rest = transfer.rest();
  const auto length = static_cast<unsigned>(rest.size());
  io_uring_sqe* sqe = NextSqe();
  if (transfer.kind() == NvmeJob::Kind::kSync) {
    io_uring_prep_fsync(sqe, kFileIndex, IORING_FSYNC_DATASYNC);
  } else {
    const bool read = transfer.kind() == NvmeJob::Kind::kRead;
    const std::optional<int> buffer = memory_.IndexOf(rest);
    const int op = buffer.has_value() ? (read ? IORING_OP_READ_FIXED : IORING_OP_WRITE_FIXED)
                                      : (read ? IORING_OP_READ : IORING_OP_WRITE);
    io_uring_prep_rw(op, sqe, kFileIndex, rest.data(), length, transfer.offset());
    if (buffer.has_value()) sqe->buf_index = static_cast<uint16_t>(*buffer);
  }
  io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
  io_uring_sqe_set_data64(sqe, uint64_t{slot} * NvmeQueue::kPiecesMax + index);
}

void UringDevice::Worker::ArmWake() {
  if (wake_armed_) return;
  io_uring_sqe* sqe = NextSqe();
  io_uring_prep_read(sqe, kEventIndex, &wake_count_, sizeof wake_count_, 0);
  io_uring_sqe_set_flags(sqe, IOSQE_FIXED_FILE);
  io_uring_sqe_set_data64(sqe, kWake);
  wake_armed_ = true;
}

io_uring_sqe* UringDevice::Worker::NextSqe() {
  io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
  while (sqe == nullptr) {  // Full of what is not submitted yet.
    if (io_uring_submit(&ring_) < 0) Reap();
    sqe = io_uring_get_sqe(&ring_);
  }
  return sqe;
}

void UringDevice::Worker::Wait(bool tick) {
  __kernel_timespec timeout = {.tv_sec = 0, .tv_nsec = kTickNanos};
  io_uring_cqe* cqe = nullptr;
  // Interrupted or timed out: the caller looks again.
  io_uring_submit_and_wait_timeout(&ring_, &cqe, 1, tick ? &timeout : nullptr, nullptr);
}

void UringDevice::Worker::Reap() {
  io_uring_cqe* cqes[64];
  unsigned count = 0;
  while ((count = io_uring_peek_batch_cqe(&ring_, cqes, 64)) > 0) {
    for (unsigned i = 0; i < count; ++i) {
      const uint64_t user_data = cqes[i]->user_data;
      const int result = cqes[i]->res;
      io_uring_cqe_seen(&ring_, cqes[i]);
      TakeResult(user_data, result);
    }
  }
}

void UringDevice::Worker::TakeResult(uint64_t user_data, int result) {
  if (user_data == kWake) {
    wake_armed_ = false;
    return;
  }
  const auto slot = static_cast<uint32_t>(user_data / NvmeQueue::kPiecesMax);
  const size_t index = user_data % NvmeQueue::kPiecesMax;
  KVD_CHECK(slot < active_.size() && active_[slot] != nullptr) << slot;
  Active& active = *active_[slot];
  NvmeTransfer& transfer = active.transfers[index];
  const int64_t taken = options_.fault ? options_.fault(transfer, result) : result;
  const NvmeTransfer::Step step = transfer.Take(taken);
  if (step == NvmeTransfer::Step::kAgain) return Prepare(slot, index);
  if (step == NvmeTransfer::Step::kFailed && active.error == 0) active.error = transfer.error();
  if (--active.open > 0) return;
  ended_.push_back({std::move(active.entry), active.error});
  active_[slot] = nullptr;
  free_slots_.push_back(slot);
}

absl::StatusOr<std::unique_ptr<UringDevice>> UringDevice::Open(
    std::shared_ptr<const DeviceFile> file, Options options, const Clock& clock) {
  auto worker = std::make_unique<Worker>(file, std::move(options), clock);
  if (absl::Status started = worker->Start(); !started.ok()) return started;
  return std::unique_ptr<UringDevice>(new UringDevice(std::move(file), std::move(worker)));
}

UringDevice::UringDevice(std::shared_ptr<const DeviceFile> file, std::unique_ptr<Worker> worker)
    : file_(std::move(file)), worker_(std::move(worker)) {}

UringDevice::~UringDevice() { worker_->Close(); }

void UringDevice::SetSink(Sink sink) { worker_->SetSink(std::move(sink)); }
bool UringDevice::Submit(NvmeJob job) { return worker_->Submit(std::move(job)); }
const std::vector<std::string>& UringDevice::notes() const { return worker_->notes(); }

}  // namespace kvd
