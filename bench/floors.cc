#include "bench/floors.h"

#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <numeric>
#include <random>

#include "proto/types/check.h"
#include "proto/types/clock.h"
#include "proto/types/copy_loops.h"
#include "proto/types/host_memory.h"
#include "proto/types/status.h"

namespace kvd {
namespace {

constexpr size_t kCopiedBytes = 64u << 20;  // Far more than a core's own caches.
constexpr size_t kMaxBlocks = 1u << 16;
constexpr size_t kBytesPerReading = 64u << 10;  // Of the clock.
constexpr Nanos kTimePerLoop = 30 * kMillisecond;
constexpr double kGiB = 1024.0 * 1024 * 1024;

// In the child: only calls that are safe after a fork.
[[noreturn]] void Echo(int fd, char* buffer, size_t size, pid_t parent) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() != parent) _exit(0);
  while (true) {
    const ssize_t got = recv(fd, buffer, size, 0);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) _exit(0);
    while (send(fd, buffer, static_cast<size_t>(got), MSG_NOSIGNAL) < 0) {
      if (errno != EINTR) _exit(0);
    }
  }
}

}  // namespace

CopyFloor MeasureCopyFloor(size_t block_bytes) {
  KVD_CHECK(block_bytes > 0);
  const size_t blocks = std::clamp<size_t>(kCopiedBytes / block_bytes, 2, kMaxBlocks);
  const size_t blocks_per_reading = std::max<size_t>(1, kBytesPerReading / block_bytes);
  MappedArray<std::byte> source(blocks * block_bytes, Touch::kNow);
  MappedArray<std::byte> target(blocks * block_bytes, Touch::kNow);
  std::vector<size_t> order(blocks);  // Random, as blocks lie in an arena that has been in use.
  std::iota(order.begin(), order.end(), size_t{0});
  std::shuffle(order.begin(), order.end(), std::minstd_rand(1));
  const SystemClock clock;
  CopyFloor best;
  for (const CopyLoop& loop : CopyLoops()) {
    const Nanos start = clock.Now();
    Nanos now = start;
    uint64_t copied = 0;
    for (size_t at = 0; now - start < kTimePerLoop; now = clock.Now()) {
      for (size_t i = 0; i < blocks_per_reading; ++i, at = at + 1 < blocks ? at + 1 : 0) {
        const size_t offset = order[at] * block_bytes;
        loop.copy(&target[offset], &source[offset], block_bytes);
        copied += block_bytes;
      }
    }
    const double gib_per_s =
        static_cast<double>(copied) / kGiB / (static_cast<double>(now - start) / 1e9);
    if (gib_per_s > best.gib_per_s) best = {gib_per_s, loop.name};
  }
  return best;
}

absl::StatusOr<std::unique_ptr<EchoProcess>> EchoProcess::Start() {
  int fds[2];
  if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) != 0) {
    return ErrnoStatus(errno, "socketpair");
  }
  std::vector<char> buffer(kMaxMessageBytes);
  const pid_t parent = getpid();
  const pid_t child = fork();
  if (child == 0) {
    close(fds[0]);
    Echo(fds[1], buffer.data(), buffer.size(), parent);
  }
  const int fork_error = errno;
  close(fds[1]);
  if (child < 0) {
    close(fds[0]);
    return ErrnoStatus(fork_error, "fork");
  }
  return std::unique_ptr<EchoProcess>(new EchoProcess(fds[0], child));
}

EchoProcess::~EchoProcess() {
  close(fd_);  // The child reads its end.
  while (waitpid(pid_, nullptr, 0) < 0 && errno == EINTR) {
  }
}

absl::StatusOr<std::vector<double>> EchoProcess::Measure(size_t message_bytes, size_t samples) {
  const std::vector<char> message(std::clamp<size_t>(message_bytes, 1, kMaxMessageBytes));
  std::vector<char> answer(message.size());
  const SystemClock clock;
  std::vector<double> microseconds;
  microseconds.reserve(samples);
  for (size_t i = 0; i < samples; ++i) {
    const Nanos start = clock.Now();
    if (send(fd_, message.data(), message.size(), MSG_NOSIGNAL) < 0) {
      return ErrnoStatus(errno, "sending to the echo process");
    }
    if (recv(fd_, answer.data(), answer.size(), 0) < 0) {
      return ErrnoStatus(errno, "receiving from the echo process");
    }
    microseconds.push_back(static_cast<double>(clock.Now() - start) / 1e3);
  }
  return microseconds;
}

}  // namespace kvd
