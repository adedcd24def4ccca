#include "daemon/gateway_listener.h"

#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "daemon/descriptors.h"
#include "daemon/peer_groups.h"
#include "daemon/unix_listener.h"
#include "proto/types/status.h"

namespace kvd {
namespace {

constexpr int kBacklog = 128;
constexpr int kNoDescriptorsMs = 100;  // How long nobody is accepted when there are none left.

ino_t SocketNumber(int fd) {
  struct stat info;
  return fstat(fd, &info) == 0 && S_ISSOCK(info.st_mode) ? info.st_ino : 0;
}

std::string BoundAddress(int fd, const std::string& host) {
  sockaddr_storage bound{};
  socklen_t size = sizeof bound;
  if (getsockname(fd, reinterpret_cast<sockaddr*>(&bound), &size) != 0) return "";
  const in_port_t port = bound.ss_family == AF_INET6
                             ? reinterpret_cast<const sockaddr_in6*>(&bound)->sin6_port
                             : reinterpret_cast<const sockaddr_in*>(&bound)->sin_port;
  const bool v6 = host.find(':') != std::string::npos;
  return absl::StrCat(v6 ? "[" : "", host, v6 ? "]" : "", ":", ntohs(port));
}

}  // namespace

std::optional<HostPort> SplitHostPort(const std::string& address) {
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos || colon == 0 || colon + 1 == address.size()) return std::nullopt;
  HostPort parts{address.substr(0, colon), address.substr(colon + 1)};
  if (parts.host.front() == '[' && parts.host.back() == ']') {
    parts.host = parts.host.substr(1, parts.host.size() - 2);
  } else if (parts.host.find(':') != std::string::npos) {
    return std::nullopt;  // A bare IPv6 address: which colon is it?
  }
  if (parts.port.find_first_not_of("0123456789") != std::string::npos || parts.port.size() > 5 ||
      std::stoi(parts.port) > 65535 || parts.host.empty()) {
    return std::nullopt;
  }
  return parts;
}

absl::StatusOr<std::unique_ptr<GatewayListener>> GatewayListener::Open(const Options& options,
                                                                       Domains& domains) {
  auto listener = std::unique_ptr<GatewayListener>(new GatewayListener(options, domains));
  listener->wake_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (listener->wake_ < 0) return ErrnoStatus(errno, "eventfd");
  if (absl::Status status = listener->ListenUnix(); !status.ok()) return status;
  if (!options.tcp.empty()) {
    if (absl::Status status = listener->ListenTcp(); !status.ok()) return status;
  }
  return listener;
}

GatewayListener::~GatewayListener() {
  Stop();
  const int own = options_.listener < 0 ? unix_ : -1;
  for (const int fd : {own, tcp_, wake_}) {
    if (fd >= 0) close(fd);
  }
  if (own >= 0) unlink(options_.path.c_str());
}

absl::Status GatewayListener::ListenUnix() {
  if (options_.listener >= 0) {
    unix_ = options_.listener;
    return absl::OkStatus();
  }
  const absl::StatusOr<int> fd = kvd::ListenUnix(options_.path, SOCK_STREAM);
  if (!fd.ok()) return fd.status();
  unix_ = *fd;
  return absl::OkStatus();
}

absl::Status GatewayListener::ListenTcp() {
  const std::optional<HostPort> parts = SplitHostPort(options_.tcp);
  if (!parts.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("tcp: must be HOST:PORT or [V6]:PORT, got ", options_.tcp));
  }
  addrinfo hints{};
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (const int error = getaddrinfo(parts->host.c_str(), parts->port.c_str(), &hints, &found);
      error != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("tcp: no address for ", parts->host, ": ", gai_strerror(error)));
  }
  absl::Status status;
  for (const addrinfo* at = found; at != nullptr && tcp_ < 0; at = at->ai_next) {
    const int fd = socket(at->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    const int on = 1;
    if (fd >= 0) setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (fd < 0 || bind(fd, at->ai_addr, at->ai_addrlen) != 0 || listen(fd, kBacklog) != 0) {
      status = ErrnoStatus(errno, absl::StrCat("tcp: listening at ", options_.tcp));
      if (fd >= 0) close(fd);
      continue;
    }
    tcp_ = fd;
  }
  freeaddrinfo(found);
  if (tcp_ < 0) return status;
  tcp_address_ = BoundAddress(tcp_, parts->host);
  return absl::OkStatus();
}

void GatewayListener::Run(NewConnection unix_connection, NewConnection tcp_connection) {
  unix_connection_ = std::move(unix_connection);
  tcp_connection_ = std::move(tcp_connection);
  thread_ = std::thread([this] { AcceptLoop(); });
}

void GatewayListener::Stop() {
  if (!thread_.joinable()) return;
  eventfd_write(wake_, 1);
  thread_.join();
}

void GatewayListener::AcceptLoop() {
  while (true) {
    pollfd waiting[] = {{.fd = wake_, .events = POLLIN},
                        {.fd = unix_, .events = POLLIN},
                        {.fd = tcp_, .events = POLLIN}};  // A descriptor of -1 is passed over.
    if (poll(waiting, 3, -1) < 0 && errno != EINTR) return;
    if (waiting[0].revents != 0) return;
    errno = 0;
    if (waiting[1].revents != 0) AcceptUnix();
    if (waiting[2].revents != 0) AcceptTcp();
    // A connection that waits keeps its listener readable, and this thread busy for nothing.
    if (errno == EMFILE || errno == ENFILE) poll(waiting, 1, kNoDescriptorsMs);
  }
}

void GatewayListener::AcceptUnix() {
  const int fd = accept4(unix_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (fd < 0) return;
  ucred credentials{};
  socklen_t size = sizeof credentials;
  if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &size) != 0) {
    close(fd);
    return;
  }
  const Peer peer{credentials.uid,
                  domains_.OfUser(credentials.uid, PeerGroups(fd, credentials.gid))};
  if (Register(fd, {.socket = SocketNumber(fd), .tcp = false, .peer = peer})) unix_connection_(fd);
}

void GatewayListener::AcceptTcp() {
  const int fd = accept4(tcp_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (fd < 0) return;
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  if (Register(fd, {.socket = SocketNumber(fd), .tcp = true})) tcp_connection_(fd);
}

// Notes the connection, before gRPC can see a call of it. False: there are too many, and it was
// closed.
bool GatewayListener::Register(int fd, Connection connection) {
  if (IsReservedDescriptor(fd)) {
    close(fd);
    return false;
  }
  absl::MutexLock lock(&mu_);
  uint32_t alike = 0;
  uint32_t of_user = 0;
  for (auto it = connections_.begin(); it != connections_.end();) {
    const auto& [other_fd, other] = *it;
    if (other_fd == fd || SocketNumber(other_fd) != other.socket) {
      connections_.erase(it++);
      continue;
    }
    alike += other.tcp == connection.tcp;
    of_user += !other.tcp && !connection.tcp && other.peer.uid == connection.peer.uid;
    ++it;
  }
  if (alike >= options_.max_connections || of_user >= options_.max_connections / 2) {
    close(fd);
    return false;
  }
  connections_[fd] = connection;
  return true;
}

std::optional<GatewayListener::Peer> GatewayListener::OfDescriptor(int fd) const {
  absl::MutexLock lock(&mu_);
  const auto it = connections_.find(fd);
  if (it == connections_.end() || it->second.tcp) return std::nullopt;
  return it->second.peer;
}

}  // namespace kvd
