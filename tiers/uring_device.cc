#include "tiers/uring_device.h"

#include <liburing.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
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
constexpr size_t kLargePiece = 64u << 10;
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
    std::vector<iovec> buffers;
    for (absl::Span<std::byte> span : memory) {
      for (; !span.empty(); span.remove_prefix(std::min<size_t>(span.size(), kRegisteredMax))) {
        buffers.push_back({span.data(), std::min<size_t>(span.size(), kRegisteredMax)});
      }
    }
    if (buffers.empty()) return "";
    const int result =
        io_uring_register_buffers(&ring, buffers.data(), static_cast<unsigned>(buffers.size()));
    if (result == -ENOMEM) {
      return "memory is not registered with io_uring: RLIMIT_MEMLOCK is too small for it";
    }
    if (result != 0) {
      return absl::StrCat("memory is not registered with io_uring: ", std::strerror(-result));
    }
    for (size_t i = 0; i < buffers.size(); ++i) {
      auto* base = static_cast<std::byte*>(buffers[i].iov_base);
      buffers_[base] = {buffers[i].iov_len, static_cast<unsigned>(i)};
    }
    return "";
  }

  void Replace(io_uring& ring, absl::Span<std::byte> before, absl::Span<std::byte> after) {
    const auto found = buffers_.find(before.data());
    if (found == buffers_.end()) return;
    const Buffer buffer = found->second;
    buffers_.erase(found);  // From here on whoever is there is served unregistered.
    if (buffer.bytes != before.size() || buffer.bytes != after.size()) return;
    const iovec memory = {after.data(), after.size()};
    if (io_uring_register_buffers_update_tag(&ring, buffer.index, &memory, nullptr, 1) == 1) {
      buffers_[after.data()] = buffer;
    }
  }

  // The buffer that has all of `bytes`.
  std::optional<unsigned> IndexOf(const iovec& bytes) const {
    auto* data = static_cast<std::byte*>(bytes.iov_base);
    auto after = buffers_.upper_bound(data);
    if (after == buffers_.begin()) return std::nullopt;
    const auto& [base, buffer] = *--after;
    if (data + bytes.iov_len > base + buffer.bytes) return std::nullopt;
    return buffer.index;
  }

 private:
  struct Buffer {
    size_t bytes = 0;
    unsigned index = 0;  // The kernel's.
  };
  std::map<std::byte*, Buffer> buffers_;  // By address.
};

// The requests that a job is made of. Only a piece by itself can use registered memory, which pays
// where it is large; small ones that lie together are one request.
std::vector<NvmeTransfer> TransfersOf(const NvmeJob& job) {
  if (job.kind == NvmeJob::Kind::kSync) return {NvmeTransfer(job.kind, 0, {})};
  std::vector<NvmeTransfer> transfers;
  uint64_t offset = job.offset;
  for (size_t first = 0, end = 0; first < job.pieces.size(); first = end) {
    uint64_t bytes = job.pieces[end++].size();
    if (bytes < kLargePiece) {
      for (; end < job.pieces.size() && job.pieces[end].size() < kLargePiece; ++end) {
        bytes += job.pieces[end].size();
      }
    }
    transfers.emplace_back(job.kind, offset,
                           absl::MakeConstSpan(job.pieces).subspan(first, end - first));
    offset += bytes;
  }
  return transfers;
}

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
  void ReplaceMemory(absl::Span<std::byte> before, absl::Span<std::byte> after);
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
  struct Replacement {
    absl::Span<std::byte> before;
    absl::Span<std::byte> after;
  };
  // What one look into the queue gave.
  struct Turn {
    std::vector<Replacement> replacements;  // Before anything begins.
    std::vector<NvmeQueue::Entry> begun;
    std::vector<NvmeQueue::Entry> expired;
    std::vector<Ended> refused;  // Never begun: not valid, or the device is being closed.
    bool closing = false;
    bool busy = false;  // The kernel has jobs: others may come to wait for them, and expire.
    bool full = false;  // And nothing begins before one of them has ended.
  };

  static bool HasSums(const std::vector<Ended>& ended) {
    return std::any_of(ended.begin(), ended.end(),
                       [](const Ended& one) { return !one.entry.job.sums.empty(); });
  }

  void Run(absl::Notification& started, absl::Status& status);
  absl::Status MakeRing();
  void Serve();
  Turn TakeTurn();
  void Begin(NvmeQueue::Entry entry);
  void Prepare(uint32_t slot, size_t transfer);
  void ArmWake();
  io_uring_sqe* NextSqe();
  // Until so many requests have ended; with a tick, for a while at most.
  void Wait(bool tick, size_t requests);
  size_t LeastOpen() const;
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
  std::vector<Replacement> replacements_ ABSL_GUARDED_BY(mutex_);
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

void UringDevice::Worker::ReplaceMemory(absl::Span<std::byte> before, absl::Span<std::byte> after) {
  {
    absl::MutexLock lock(&mutex_);
    replacements_.push_back({before, after});
  }
  eventfd_write(wake_fd_, 1);
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
  io_uring_register_ring_fd(&ring_);  // Saves a look-up in each call; a refusal is harmless.
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
    for (const Replacement& replacement : turn.replacements) {
      memory_.Replace(ring_, replacement.before, replacement.after);
    }
    for (NvmeQueue::Entry& entry : turn.begun) Begin(std::move(entry));
    ArmWake();
    // Before what takes time, so that the disk works meanwhile. Otherwise waiting submits, too, and
    // so does the next call with what this one leaves (a busy ring).
    if (HasSums(ended_)) io_uring_submit(&ring_);
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
    Wait(turn.busy || turn.closing, turn.full ? LeastOpen() : 1);
    Reap();
  }
}

UringDevice::Worker::Turn UringDevice::Worker::TakeTurn() {
  Turn turn;
  const Nanos now = clock_.Now();
  absl::MutexLock lock(&mutex_);
  for (const Ended& ended : ended_) queue_.End(ended.entry);
  turn.replacements = std::exchange(replacements_, {});
  turn.closing = closing_;
  while (auto entry = queue_.TakeExpired(now)) turn.expired.push_back(*std::move(entry));
  if (closing_) {
    while (auto entry = queue_.TakeWaiting()) {
      turn.refused.push_back({*std::move(entry), ECANCELED});
    }
  }
  while (auto entry = queue_.Begin()) {
    if (IsValidJob(entry->job, file_->size_bytes())) {
      turn.begun.push_back(*std::move(entry));
    } else {
      queue_.End(*entry);
      turn.refused.push_back({*std::move(entry), EINVAL});
    }
  }
  turn.busy = queue_.begun() > 0;
  turn.full = queue_.full();
  asleep_ = true;
  return turn;
}

void UringDevice::Worker::Begin(NvmeQueue::Entry entry) {
  auto active = std::make_unique<Active>();
  active->transfers = TransfersOf(entry.job);
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
  const std::vector<iovec>& rest = transfer.rest();
  const bool read = transfer.kind() == NvmeJob::Kind::kRead;
  io_uring_sqe* sqe = NextSqe();
  if (transfer.kind() == NvmeJob::Kind::kSync) {
    io_uring_prep_fsync(sqe, kFileIndex, IORING_FSYNC_DATASYNC);
  } else if (rest.size() > 1) {
    io_uring_prep_rw(read ? IORING_OP_READV : IORING_OP_WRITEV, sqe, kFileIndex, rest.data(),
                     static_cast<unsigned>(rest.size()), transfer.offset());
  } else {
    const std::optional<unsigned> buffer = memory_.IndexOf(rest[0]);
    const int op = buffer.has_value() ? (read ? IORING_OP_READ_FIXED : IORING_OP_WRITE_FIXED)
                                      : (read ? IORING_OP_READ : IORING_OP_WRITE);
    io_uring_prep_rw(op, sqe, kFileIndex, rest[0].iov_base, static_cast<unsigned>(rest[0].iov_len),
                     transfer.offset());
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

// How many requests must end at least before a job has ended: sleeping until then saves a wake-up
// for each header that ends before its payload.
size_t UringDevice::Worker::LeastOpen() const {
  size_t least = NvmeQueue::kPiecesMax;
  for (const std::unique_ptr<Active>& active : active_) {
    if (active != nullptr) least = std::min(least, active->open);
  }
  return least;
}

void UringDevice::Worker::Wait(bool tick, size_t requests) {
  __kernel_timespec timeout = {.tv_sec = 0, .tv_nsec = kTickNanos};
  io_uring_cqe* cqe = nullptr;
  // Interrupted or timed out: the caller looks again.
  io_uring_submit_and_wait_timeout(&ring_, &cqe, static_cast<unsigned>(requests),
                                   tick ? &timeout : nullptr, nullptr);
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
void UringDevice::ReplaceMemory(absl::Span<std::byte> before, absl::Span<std::byte> after) {
  worker_->ReplaceMemory(before, after);
}
bool UringDevice::Submit(NvmeJob job) { return worker_->Submit(std::move(job)); }
const std::vector<std::string>& UringDevice::notes() const { return worker_->notes(); }

}  // namespace kvd
