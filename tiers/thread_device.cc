#include "tiers/thread_device.h"

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"

namespace kvd {
namespace {

// How often deadlines of waiting jobs are looked at while a device does not answer.
constexpr absl::Duration kTick = absl::Milliseconds(10);

NvmeLimits LimitsFor(NvmeLimits limits) {
  limits.depth_jobs = std::min(limits.depth_jobs, ThreadDevice::kThreadsMax);
  return limits;
}

}  // namespace

class ThreadDevice::Pool : public std::enable_shared_from_this<Pool> {
 public:
  Pool(std::shared_ptr<const DeviceFile> file, Options options, const Clock& clock)
      : file_(std::move(file)),
        options_(std::move(options)),
        clock_(clock),
        queue_(LimitsFor(options_.limits)) {}

  void Start();
  void SetSink(Sink sink) { sink_ = std::move(sink); }
  bool Submit(NvmeJob job);
  void Close();

 private:
  void Run();
  // Sleeps until there is a job to begin, one has expired or the pool is closing. The lock is given
  // up around whatever is told.
  std::optional<NvmeQueue::Entry> NextJob();
  int Transfer(const NvmeQueue::Entry& entry) const;
  bool TellExpired() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Not once Close() has given up waiting.
  void Tell(const NvmeDone& done);
  bool IsSilent() {
    absl::MutexLock lock(&telling_);
    return silent_;
  }

  const std::shared_ptr<const DeviceFile> file_;
  const Options options_;
  const Clock& clock_;
  Sink sink_;  // Set before the first job, whose hand-over orders it.

  absl::Mutex mutex_;
  absl::CondVar changed_;  // Something to begin, or closing.
  absl::CondVar ended_;    // A thread has ended.
  NvmeQueue queue_ ABSL_GUARDED_BY(mutex_);
  bool closing_ ABSL_GUARDED_BY(mutex_) = false;
  uint32_t running_ ABSL_GUARDED_BY(mutex_) = 0;  // Threads.

  absl::Mutex telling_;  // Held around the sink, so that Close() can forbid it for good.
  bool silent_ ABSL_GUARDED_BY(telling_) = false;
};

void ThreadDevice::Pool::Start() {
  // One more than may be in the kernel: it looks at the deadlines while the others hang.
  const uint32_t count = LimitsFor(options_.limits).depth_jobs + 1;
  {
    absl::MutexLock lock(&mutex_);
    running_ = count;
  }
  for (uint32_t i = 0; i < count; ++i) {
    // Detached: a thread that hangs in the kernel cannot be waited for. Close() counts them.
    std::thread([self = shared_from_this()] { self->Run(); }).detach();
  }
}

bool ThreadDevice::Pool::Submit(NvmeJob job) {
  const Nanos now = clock_.Now();
  absl::MutexLock lock(&mutex_);
  if (!queue_.Push(std::move(job), now)) return false;
  changed_.Signal();
  return true;
}

void ThreadDevice::Pool::Close() {
  const absl::Time give_up = absl::Now() + absl::Nanoseconds(options_.close_wait);
  bool hung = false;
  {
    absl::MutexLock lock(&mutex_);
    closing_ = true;
    changed_.SignalAll();
    while (running_ > 0 && !hung) hung = ended_.WaitWithDeadline(&mutex_, give_up);
  }
  absl::MutexLock lock(&telling_);
  silent_ = true;
}

void ThreadDevice::Pool::Run() {
  pthread_setname_np(pthread_self(), "kvd-nvme");
  while (std::optional<NvmeQueue::Entry> entry = NextJob()) {
    const int error = IsValidJob(entry->job, file_->size_bytes()) ? Transfer(*entry) : EINVAL;
    {
      absl::MutexLock lock(&mutex_);
      queue_.End(*entry);
      changed_.Signal();  // Another may begin what there was no depth for, while this one sums.
    }
    if (IsSilent()) break;  // The buffers may be gone by now: nothing to sum.
    Tell(EndJob(*entry, error, clock_));
  }
  absl::MutexLock lock(&mutex_);
  --running_;
  ended_.SignalAll();
}

std::optional<NvmeQueue::Entry> ThreadDevice::Pool::NextJob() {
  absl::MutexLock lock(&mutex_);
  while (true) {
    if (TellExpired()) continue;
    if (closing_) {
      std::optional<NvmeQueue::Entry> cancelled = queue_.TakeWaiting();
      if (!cancelled.has_value()) return std::nullopt;
      mutex_.Unlock();
      Tell(EndJob(*cancelled, ECANCELED, clock_));
      mutex_.Lock();
      continue;
    }
    if (std::optional<NvmeQueue::Entry> entry = queue_.Begin()) {
      if (queue_.MayBegin()) changed_.Signal();
      return entry;
    }
    if (queue_.waiting()) {
      changed_.WaitWithTimeout(&mutex_, kTick);
    } else {
      changed_.Wait(&mutex_);
    }
  }
}

bool ThreadDevice::Pool::TellExpired() {
  const std::optional<NvmeQueue::Entry> expired = queue_.TakeExpired(clock_.Now());
  if (!expired.has_value()) return false;
  mutex_.Unlock();
  Tell({.tag = expired->job.tag,
        .outcome = NvmeOutcome::kExpired,
        .took = clock_.Now() - expired->submitted});
  mutex_.Lock();
  return true;
}

int ThreadDevice::Pool::Transfer(const NvmeQueue::Entry& entry) const {
  NvmeTransfer transfer(entry.job.kind, entry.job.offset, entry.job.pieces);
  NvmeTransfer::Step step = NvmeTransfer::Step::kAgain;
  while (step == NvmeTransfer::Step::kAgain) {
    const int64_t result = file_->Ask(transfer);
    step = transfer.Take(options_.fault ? options_.fault(transfer, result) : result);
  }
  return step == NvmeTransfer::Step::kFailed ? transfer.error() : 0;
}

void ThreadDevice::Pool::Tell(const NvmeDone& done) {
  absl::MutexLock lock(&telling_);
  if (!silent_ && sink_) sink_(done);
}

ThreadDevice::ThreadDevice(std::shared_ptr<const DeviceFile> file, Options options,
                           const Clock& clock)
    : file_(file), pool_(std::make_shared<Pool>(std::move(file), std::move(options), clock)) {
  pool_->Start();
}

ThreadDevice::~ThreadDevice() { pool_->Close(); }

void ThreadDevice::SetSink(Sink sink) { pool_->SetSink(std::move(sink)); }
bool ThreadDevice::Submit(NvmeJob job) { return pool_->Submit(std::move(job)); }

}  // namespace kvd
