#include "daemon/activation.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <systemd/sd-daemon.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "daemon/descriptors.h"
#include "daemon/unix_listener.h"
#include "proto/types/status.h"

namespace kvd {
namespace {

constexpr int kNoDescriptorsMs = 100;  // How long nobody is accepted when there are none left.

// Where a Unix socket is bound; empty: nowhere in the file system, or no Unix socket.
std::string PathOf(int fd) {
  sockaddr_un address{};
  socklen_t size = sizeof address;
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0 ||
      address.sun_family != AF_UNIX) {
    return "";
  }
  return {address.sun_path, strnlen(address.sun_path, sizeof address.sun_path)};
}

}  // namespace

absl::StatusOr<ActivatedSockets> ActivatedSockets::Take(const std::string& path) {
  ActivatedSockets sockets;
  const int count = sd_listen_fds(/*unset_environment=*/1);
  if (count < 0) return ErrnoStatus(-count, "LISTEN_FDS of the environment");
  for (int fd = SD_LISTEN_FDS_START; fd < SD_LISTEN_FDS_START + count; ++fd) {
    const std::string at = PathOf(fd);
    const auto suffix = std::find_if(kSuffixes.begin(), kSuffixes.end(), [&](std::string_view s) {
      return at == path + std::string(s);
    });
    if (suffix == kSuffixes.end()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "the service manager passed a socket ", at.empty() ? "that has no path" : "at " + at,
          ", which is not of this endpoint: give the socket unit and `listen` (--listen) the same "
          "path, ",
          path));
    }
    const bool sessions = *suffix == ".session";
    if (sd_is_socket(fd, AF_UNIX, sessions ? SOCK_SEQPACKET : SOCK_STREAM, /*listening=*/1) <= 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("the service manager passed ", at,
                       " as another kind of socket: the socket unit must say ",
                       sessions ? "ListenSequentialPacket=" : "ListenStream=", at));
    }
    if (fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK) != 0) return ErrnoStatus(errno, at);
    sockets.descriptors_[suffix - kSuffixes.begin()] = fd;
  }
  return sockets;
}

int ActivatedSockets::at(std::string_view suffix) const {
  const auto found = std::find(kSuffixes.begin(), kSuffixes.end(), suffix);
  return found == kSuffixes.end() ? -1 : descriptors_[found - kSuffixes.begin()];
}

bool ActivatedSockets::empty() const {
  return std::all_of(descriptors_.begin(), descriptors_.end(), [](int fd) { return fd < 0; });
}

absl::StatusOr<std::unique_ptr<Acceptor>> Acceptor::Start(int listener,
                                                          std::function<void(int fd)> adopt) {
  const int wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (wake < 0) return ErrnoStatus(errno, "eventfd");
  auto acceptor = std::unique_ptr<Acceptor>(new Acceptor(listener, wake, std::move(adopt)));
  acceptor->thread_ = std::thread([raw = acceptor.get()] { raw->Run(); });
  return acceptor;
}

absl::StatusOr<std::unique_ptr<Acceptor>> Acceptor::Listen(const std::string& path,
                                                           std::function<void(int fd)> adopt) {
  const absl::StatusOr<int> listener = ListenUnix(path, SOCK_STREAM);
  if (!listener.ok()) return listener.status();
  absl::StatusOr<std::unique_ptr<Acceptor>> acceptor = Start(*listener, std::move(adopt));
  if (acceptor.ok()) {
    (*acceptor)->bound_ = path;
  } else {
    close(*listener);
    unlink(path.c_str());
  }
  return acceptor;
}

Acceptor::Acceptor(int listener, int wake, std::function<void(int fd)> adopt)
    : listener_(listener), wake_(wake), adopt_(std::move(adopt)) {}

Acceptor::~Acceptor() {
  eventfd_write(wake_, 1);
  if (thread_.joinable()) thread_.join();
  close(wake_);
  if (bound_.empty()) return;
  close(listener_);
  unlink(bound_.c_str());
}

void Acceptor::Run() {
  pollfd waiting[] = {{.fd = wake_, .events = POLLIN}, {.fd = listener_, .events = POLLIN}};
  while (true) {
    if (poll(waiting, 2, -1) < 0 && errno != EINTR) return;
    if (waiting[0].revents != 0) return;
    if (waiting[1].revents == 0) continue;
    const int fd = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd >= 0 && IsReservedDescriptor(fd)) {
      close(fd);
    } else if (fd >= 0) {
      adopt_(fd);
    } else if (errno != EAGAIN && errno != EINTR && errno != ECONNABORTED) {
      // Out of descriptors, most likely: what waits keeps the listener readable.
      poll(waiting, 1, kNoDescriptorsMs);
    }
  }
}

void NotifyServiceManager(const char* state) { sd_notify(/*unset_environment=*/0, state); }

Watchdog::Watchdog(std::function<void()> ask) : ask_(std::move(ask)) {
  uint64_t limit_us = 0;
  if (sd_watchdog_enabled(/*unset_environment=*/0, &limit_us) <= 0) return;
  const absl::Duration interval = absl::Microseconds(static_cast<int64_t>(limit_us / 2));
  thread_ = std::thread([this, interval] { Run(interval); });
}

Watchdog::~Watchdog() {
  stop_.Notify();
  if (thread_.joinable()) thread_.join();
}

void Watchdog::Run(absl::Duration interval) {
  while (!stop_.WaitForNotificationWithTimeout(interval)) ask_();
}

}  // namespace kvd
