#include "daemon/former_readers.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "daemon/process_identity.h"

namespace kvd {

absl::StatusOr<std::vector<FormerReaders::Reader>> FormerReaders::Find(
    const std::vector<std::pair<uint32_t, ReaderRow>>& sessions) {
  std::vector<Reader> readers;
  absl::Status status;
  for (const auto& [number, session] : sessions) {
    if (session.started == kUnknownStart) {
      status = absl::UnavailableError(
          "a reader of before is in another PID namespace: nobody can tell when it ends");
      break;
    }
    const int pidfd = static_cast<int>(syscall(SYS_pidfd_open, session.pid, 0));
    if (pidfd < 0 && errno == ESRCH) continue;
    if (pidfd < 0) {
      status = absl::ErrnoToStatus(errno, absl::StrCat("watching process ", session.pid));
      break;
    }
    // Asked while we have it in hand: the number cannot change owners any more.
    if (ProcessStart(session.pid) != session.started) {
      close(pidfd);
      continue;
    }
    readers.push_back({.number = number, .session = session, .pidfd = pidfd});
  }
  if (status.ok()) return readers;
  for (const Reader& reader : readers) close(reader.pidfd);
  return status;
}

FormerReaders::FormerReaders(std::vector<Reader> readers, std::function<void(uint32_t)> ended)
    : readers_(std::move(readers)), ended_(std::move(ended)), stop_(eventfd(0, EFD_CLOEXEC)) {
  if (!readers_.empty()) thread_ = std::thread([this] { Run(); });
}

FormerReaders::~FormerReaders() {
  if (thread_.joinable()) {
    eventfd_write(stop_, 1);
    thread_.join();
  }
  for (const Reader& reader : readers_) close(reader.pidfd);
  if (stop_ >= 0) close(stop_);
}

void FormerReaders::Run() {
  while (!readers_.empty()) {
    std::vector<pollfd> watched = {{.fd = stop_, .events = POLLIN, .revents = 0}};
    for (const Reader& reader : readers_) {
      watched.push_back({.fd = reader.pidfd, .events = POLLIN, .revents = 0});
    }
    if (poll(watched.data(), watched.size(), -1) < 0) continue;  // EINTR.
    if (watched[0].revents != 0) return;
    std::vector<Reader> living;
    for (size_t i = 0; i < readers_.size(); ++i) {
      if (watched[i + 1].revents == 0) {
        living.push_back(readers_[i]);
        continue;
      }
      close(readers_[i].pidfd);
      ended_(readers_[i].number);
    }
    readers_ = std::move(living);
  }
}

}  // namespace kvd
