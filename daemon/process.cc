#include "daemon/process.h"

#include <malloc.h>
#include <pthread.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <utility>

#include "absl/synchronization/mutex.h"
#include "absl/time/time.h"
#include "daemon/tls.h"

namespace kvd {
namespace {

// Each arena is locked for as long as its free pages take to go, so seldom; and often enough that
// an operator who looks after a burst sees it gone.
constexpr absl::Duration kTrimInterval = absl::Seconds(2);
constexpr size_t kTrimKeepBytes = 16 << 10;

// Of the heap. By default glibc gives each thread an arena, and raises both thresholds to as much
// as 32 and 64 MiB once large memory was freed. malloc_trim() gives back the free end of the first
// arena only, so there is one: after a burst all of it goes. The thresholds are above what a call
// of 32,768 blocks needs (1 MiB at a time): memory that is given back after each call costs more to
// get again, a fault for each page, than the call itself.
constexpr int kHeapArenas = 1;
constexpr int kHeapMmapBytes = 4 << 20;   // From this size on memory is mapped, and given back.
constexpr int kHeapTrimBytes = 16 << 20;  // The free end that may stay until the next trim.

sigset_t OurSignals() {
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) sigaddset(&signals, signal);
  return signals;
}

void RaiseDescriptorLimit() {
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

}  // namespace

// Two of them are worth half the time of a small call.
void TuneLibraries() {
  mallopt(M_ARENA_MAX, kHeapArenas);
  mallopt(M_MMAP_THRESHOLD, kHeapMmapBytes);
  mallopt(M_TRIM_THRESHOLD, kHeapTrimBytes);
  // gRPC's epoll engine has one poller for the whole process. A thread of the admin server would be
  // it most of the time, and each call of an engine would wake that thread first and the control
  // thread second. With poll() a thread waits for its own queue only. The operator's choice stands.
  setenv("GRPC_POLL_STRATEGY", "poll", /*overwrite=*/0);
  Tls13Only();
  // Debian builds Abseil with the checks of a debug build: every lock would note its order.
  absl::SetMutexDeadlockDetectionMode(absl::OnDeadlockCycle::kIgnore);
}

void PrepareProcess() {
  // Engines often run under our user id, and seals do not keep a process of the same id from
  // writing through /proc/PID/mem or ptrace. It costs the core file, which would hold everybody's
  // blocks.
  prctl(PR_SET_DUMPABLE, 0);
  umask(0077);  // What we make is ours alone; sockets until we open them to engines.
  RaiseDescriptorLimit();
  const sigset_t signals = OurSignals();  // Every thread leaves these to the one that waits.
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
}

int WaitForSignal() {
  const sigset_t signals = OurSignals();
  int signal = 0;
  sigwait(&signals, &signal);
  return signal;
}

// The control thread does little at a time and everybody waits for it: it should run as soon as it
// is woken, also beside copiers and engines that use their CPUs up. Best effort: a shorter slice
// (Linux 6.12) is for anybody to take, a higher priority for those who may.
void PreferThisThread() {
  struct {  // sched_attr of sched_setattr(2), which libc does not declare.
    uint32_t size = sizeof(*this);
    uint32_t policy = SCHED_OTHER;
    uint64_t flags = 0;
    int32_t nice = 0;
    uint32_t priority = 0;
    uint64_t runtime_ns = 100'000;
    uint64_t deadline_ns = 0;
    uint64_t period_ns = 0;
  } wanted;
  wanted.nice = -10;
  if (syscall(SYS_sched_setattr, 0, &wanted, 0) == 0) return;
  wanted.nice = getpriority(PRIO_PROCESS, 0);
  syscall(SYS_sched_setattr, 0, &wanted, 0);
}

HeapTrimmer::HeapTrimmer() {
  thread_ = std::thread([this] {
    while (!stop_.WaitForNotificationWithTimeout(kTrimInterval)) malloc_trim(kTrimKeepBytes);
  });
}

HeapTrimmer::~HeapTrimmer() {
  stop_.Notify();
  thread_.join();
}

Periodic::Periodic(absl::Duration period, std::function<void()> call) {
  thread_ = std::thread([this, period, call = std::move(call)] {
    while (!stop_.WaitForNotificationWithTimeout(period)) call();
  });
}

Periodic::~Periodic() {
  stop_.Notify();
  thread_.join();
}

}  // namespace kvd
