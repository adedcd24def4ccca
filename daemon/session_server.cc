#include "daemon/session_server.h"

#include <fcntl.h>
#include <linux/magic.h>
#include <linux/memfd.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "daemon/descriptors.h"
#include "daemon/peer_groups.h"
#include "daemon/process_identity.h"
#include "daemon/unix_listener.h"
#include "proto/types/status.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77  // Since Linux 6.5; older headers lack it.
#endif

namespace kvd {
namespace {

// Tags of the epoll set: a kind and a serial number.
enum class Watched : uint64_t { kListener = 1, kWake = 2, kSocket = 3, kProcess = 4 };

uint64_t Tag(Watched kind, uint32_t serial = 0) {
  return static_cast<uint64_t>(kind) << 32 | serial;
}

// A mapping of staging memory, read-only for us.
class MappedStaging final : public StagedBytes {
 public:
  MappedStaging(void* data, size_t size) : data_(data), size_(size) {}
  ~MappedStaging() override { munmap(data_, size_); }
  absl::Span<const std::byte> bytes() const override {
    return {static_cast<const std::byte*>(data_), size_};
  }

 private:
  void* data_;
  size_t size_;
};

int OpenPidfd(int socket, pid_t pid) {
  int pidfd = -1;
  socklen_t size = sizeof pidfd;
  if (getsockopt(socket, SOL_SOCKET, SO_PEERPIDFD, &pidfd, &size) == 0) return pidfd;
  return static_cast<int>(syscall(SYS_pidfd_open, pid, 0));
}

// Whether `size` bytes of `fd` can be read without the client being able to kill a copier by it:
// memory that shrinks is a SIGBUS, and so is a hole that is punched into huge pages when there are
// no others left. Holes in small pages read as zeros.
bool CanBeStaging(int fd, uint64_t size) {
  const int seals = fd < 0 ? -1 : fcntl(fd, F_GET_SEALS);
  struct stat info;
  struct statfs system;
  if (seals < 0 || (seals & F_SEAL_SHRINK) == 0 || fstat(fd, &info) != 0 ||
      fstatfs(fd, &system) != 0 || static_cast<uint64_t>(info.st_size) < size) {
    return false;
  }
  if (system.f_type != HUGETLBFS_MAGIC) return true;
  // munmap() takes whole huge pages only.
  return (seals & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE)) != 0 &&
         size % static_cast<uint64_t>(info.st_blksize) == 0;
}

bool Send(int socket, const void* message, size_t size, absl::Span<const int> fds) {
  iovec io{const_cast<void*>(message), size};
  msghdr header{};
  header.msg_iov = &io;
  header.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(2 * sizeof(int))] = {};
  if (!fds.empty()) {
    header.msg_control = control;
    header.msg_controllen = CMSG_SPACE(fds.size() * sizeof(int));
    cmsghdr* part = CMSG_FIRSTHDR(&header);
    part->cmsg_level = SOL_SOCKET;
    part->cmsg_type = SCM_RIGHTS;
    part->cmsg_len = CMSG_LEN(fds.size() * sizeof(int));
    std::memcpy(CMSG_DATA(part), fds.data(), fds.size() * sizeof(int));
  }
  // A client that does not read its answers loses the session, not our time.
  return sendmsg(socket, &header, MSG_DONTWAIT | MSG_NOSIGNAL) == static_cast<ssize_t>(size);
}

// Receives one message and at most one descriptor; more are closed. Returns what recvmsg() does.
ssize_t Receive(int socket, void* message, size_t size, int* fd) {
  iovec io{message, size};
  alignas(cmsghdr) char control[CMSG_SPACE(8 * sizeof(int))];
  msghdr header{};
  header.msg_iov = &io;
  header.msg_iovlen = 1;
  header.msg_control = control;
  header.msg_controllen = sizeof control;
  const ssize_t got = recvmsg(socket, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
  *fd = -1;
  if (got < 0) return got;
  for (cmsghdr* part = CMSG_FIRSTHDR(&header); part != nullptr; part = CMSG_NXTHDR(&header, part)) {
    if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int passed;
      std::memcpy(&passed, CMSG_DATA(part) + i * sizeof(int), sizeof passed);
      if (*fd < 0) {
        *fd = passed;
      } else {
        close(passed);
      }
    }
  }
  return (header.msg_flags & MSG_TRUNC) != 0 ? static_cast<ssize_t>(size) + 1 : got;
}

}  // namespace

absl::StatusOr<std::unique_ptr<SessionServer>> SessionServer::Start(Inbox& inbox,
                                                                    CopierPool& copiers,
                                                                    const RegionDirectory& regions,
                                                                    Domains& domains,
                                                                    const Options& options) {
  auto server =
      std::unique_ptr<SessionServer>(new SessionServer(inbox, copiers, regions, domains, options));
  server->listener_ = options.listener;
  if (options.listener < 0) {
    const absl::StatusOr<int> listener = ListenUnix(options.path, SOCK_SEQPACKET);
    if (!listener.ok()) return listener.status();
    server->listener_ = *listener;
  }
  server->epoll_ = epoll_create1(EPOLL_CLOEXEC);
  server->wake_ = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  server->spare_ = open("/dev/null", O_RDONLY | O_CLOEXEC);
  if (server->epoll_ < 0 || server->wake_ < 0 || server->spare_ < 0 ||
      !server->Watch(server->listener_, Tag(Watched::kListener)) ||
      !server->Watch(server->wake_, Tag(Watched::kWake))) {
    return ErrnoStatus(errno, "session server");
  }
  server->thread_ = std::thread([raw = server.get()] { raw->Run(); });
  return server;
}

SessionServer::~SessionServer() {
  if (thread_.joinable()) {
    {
      absl::MutexLock lock(&mu_);
      stop_ = true;
    }
    eventfd_write(wake_, 1);
    thread_.join();
  }
  for (const auto& [serial, peer] : peers_) {
    if (peer->socket >= 0) close(peer->socket);
    if (peer->pidfd >= 0) close(peer->pidfd);
  }
  for (const int fd : {epoll_, wake_, spare_}) {
    if (fd >= 0) close(fd);
  }
  if (options_.listener >= 0) return;
  if (listener_ >= 0) close(listener_);
  unlink(options_.path.c_str());
}

void SessionServer::Forget(uint32_t serial) {
  {
    absl::MutexLock lock(&mu_);
    over_.push_back(serial);
  }
  eventfd_write(wake_, 1);
}

bool SessionServer::Watch(int fd, uint64_t tag) {
  epoll_event event{.events = EPOLLIN, .data = {.u64 = tag}};
  return epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event) == 0;
}

SessionServer::Use SessionServer::UseOf(DomainId domain) const {
  Use use;
  for (const auto& [serial, peer] : peers_) {
    if (peer->domain != domain) continue;
    ++use.sessions;
    use.staging_bytes += peer->staging_bytes;
    use.own_staging_bytes += peer->own_staging_bytes;
  }
  return use;
}

bool SessionServer::StagingFits(const Peer& peer, uint64_t made, uint64_t own) const {
  const Use domain = UseOf(peer.domain);
  return use_.staging_bytes + made <= options_.max_staging_bytes &&
         domain.staging_bytes + made <= options_.max_domain_staging_bytes &&
         use_.own_staging_bytes + own <= options_.max_all_own_staging_bytes &&
         domain.own_staging_bytes + own <= options_.max_domain_own_staging_bytes;
}

void SessionServer::Run() {
  epoll_event events[64];
  while (true) {
    const int n = epoll_wait(epoll_, events, 64, -1);
    for (int i = 0; i < n; ++i) {
      const auto serial = static_cast<uint32_t>(events[i].data.u64);
      const auto peer = peers_.find(serial);
      switch (static_cast<Watched>(events[i].data.u64 >> 32)) {
        case Watched::kListener:
          Accept();
          break;
        case Watched::kWake: {
          eventfd_t ignored;
          eventfd_read(wake_, &ignored);
          std::vector<uint32_t> over;
          {
            absl::MutexLock lock(&mu_);
            if (stop_) return;
            over.swap(over_);
          }
          for (const uint32_t forgotten : over) Remove(forgotten);
          break;
        }
        case Watched::kSocket:
          if (peer != peers_.end() && peer->second->socket >= 0) Serve(*peer->second);
          break;
        case Watched::kProcess:
          if (peer == peers_.end() || peer->second->pidfd < 0) break;
          if (peer->second->socket >= 0) CloseSocket(*peer->second);
          if (const auto again = peers_.find(serial); again != peers_.end()) {
            close(again->second->pidfd);
            again->second->pidfd = -1;
            inbox_.Post(ProcessExited{serial});
          }
          break;
      }
    }
  }
}

void SessionServer::Accept() {
  const int socket = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (socket < 0) {
    if (errno == EMFILE || errno == ENFILE) RefuseForWantOfDescriptors();
    return;
  }
  ucred credentials{};
  socklen_t size = sizeof credentials;
  const bool known = getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &size) == 0;
  std::optional<DomainId> domain;
  if (known) domain = domains_.OfUser(credentials.uid, PeerGroups(socket, credentials.gid));
  const int pidfd = domain.has_value() ? OpenPidfd(socket, credentials.pid) : -1;
  SessionStatus status = SessionStatus::kOk;
  if (!domain.has_value()) {
    status = SessionStatus::kRefused;
    if (options_.strangers != nullptr) options_.strangers->Count(Stranger::kUser);
  } else if (pidfd < 0) {
    status = SessionStatus::kInvalid;
  } else if (IsReservedDescriptor(std::max(socket, pidfd)) ||
             peers_.size() >= options_.max_sessions ||
             UseOf(*domain).sessions >= options_.max_domain_sessions ||
             !Watch(socket, Tag(Watched::kSocket, next_serial_)) ||
             !Watch(pidfd, Tag(Watched::kProcess, next_serial_))) {
    status = SessionStatus::kFull;
  }
  if (status != SessionStatus::kOk) {
    const SessionWelcome refusal{.status = status};
    Send(socket, &refusal, sizeof refusal, {});
    if (pidfd >= 0) close(pidfd);
    close(socket);
    return;
  }
  auto peer = std::make_unique<Peer>();
  peer->serial = next_serial_++;
  peer->socket = socket;
  peer->pidfd = pidfd;
  peer->domain = *domain;
  peer->uid = credentials.uid;
  peer->pid = credentials.pid;
  peer->started = ProcessStart(peer->pid).value_or(kUnknownStart);
  peers_[peer->serial] = std::move(peer);
}

// A connection that waits would keep the listener readable, and this thread busy for nothing.
void SessionServer::RefuseForWantOfDescriptors() {
  close(std::exchange(spare_, -1));
  const int socket = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (socket >= 0) {
    const SessionWelcome refusal{.status = SessionStatus::kFull};
    Send(socket, &refusal, sizeof refusal, {});
    close(socket);
  }
  spare_ = open("/dev/null", O_RDONLY | O_CLOEXEC);
}

void SessionServer::Serve(Peer& peer) {
  union {
    SessionMessage kind;
    SessionHello hello;
    RegionRequest region;
    StagingRequest staging;
    char bytes[64];
  } message{};
  int fd = -1;
  const ssize_t size = Receive(peer.socket, &message, sizeof message, &fd);
  if (size < 0 && (errno == EAGAIN || errno == EINTR)) return;
  bool fine = false;
  if (!peer.greeted) {
    fine = size == sizeof message.hello && message.hello.magic == kSessionMagic &&
           message.hello.kind == SessionMessage::kHello && Greet(peer, message.hello);
  } else if (size == sizeof message.region && message.kind == SessionMessage::kRegionRequest) {
    fine = GiveRegion(peer, message.region);
  } else if (size == sizeof message.staging && message.kind == SessionMessage::kStagingRequest) {
    fine = GiveStaging(peer, message.staging, fd);
  }
  if (fd >= 0) close(fd);
  if (!fine) CloseSocket(peer);
}

bool SessionServer::Greet(Peer& peer, const SessionHello& hello) {
  SessionWelcome welcome;
  if (hello.version_min > kProtocolVersion || hello.version_max < kProtocolVersionMin) {
    welcome.status = SessionStatus::kVersion;
    welcome.version = kProtocolVersion;
    Send(peer.socket, &welcome, sizeof welcome, {});
    return false;
  }
  welcome.version = std::min(hello.version_max, kProtocolVersion);
  if (getrandom(welcome.token.data(), welcome.token.size(), 0) !=
      static_cast<ssize_t>(welcome.token.size())) {
    return false;
  }
  peer.greeted = true;
  peer.protocol = welcome.version;
  // The control thread knows the session before the client can name it.
  inbox_.Post(SessionOpened{.serial = peer.serial,
                            .token = welcome.token,
                            .domain = peer.domain,
                            .uid = peer.uid,
                            .pid = peer.pid,
                            .finished = hello.finished_session,
                            .started = peer.started});
  return Send(peer.socket, &welcome, sizeof welcome, {});
}

bool SessionServer::GiveRegion(Peer& peer, const RegionRequest& request) {
  RegionReply reply{.region = request.region};
  const RegionDirectory::Entry entry = regions_.Open(request.region, peer.domain);
  if (entry.fd < 0) {
    reply.status = SessionStatus::kNotFound;
    return Send(peer.socket, &reply, sizeof reply, {});
  }
  reply.size_bytes = entry.size_bytes;
  const bool sent = Send(peer.socket, &reply, sizeof reply, {entry.fd});
  close(entry.fd);
  return sent;
}

bool SessionServer::GiveStaging(Peer& peer, const StagingRequest& request, int own_fd) {
  StagingReply reply;
  const auto refuse = [&](SessionStatus status) {
    reply.status = status;
    return Send(peer.socket, &reply, sizeof reply, {});
  };
  // One of each kind.
  uint64_t& has = request.own != 0 ? peer.own_staging_bytes : peer.staging_bytes;
  if (has != 0 || request.size_bytes == 0) return refuse(SessionStatus::kInvalid);
  const bool first = peer.staging_bytes == 0 && peer.own_staging_bytes == 0;
  int fd = own_fd;
  uint64_t size = request.size_bytes;
  if (request.own != 0) {
    if (!CanBeStaging(own_fd, size) || size > options_.max_own_staging_bytes) {
      return refuse(SessionStatus::kInvalid);
    }
    if (!StagingFits(peer, 0, size)) return refuse(SessionStatus::kFull);
  } else {
    size = std::min<uint64_t>(size, kMaxStagingBytes);
    if (!StagingFits(peer, size, 0)) return refuse(SessionStatus::kFull);
    fd = memfd_create("kvd-staging", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0 || fchmod(fd, 0600) != 0 || ftruncate(fd, static_cast<off_t>(size)) != 0 ||
        fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
      if (fd >= 0) close(fd);
      return refuse(SessionStatus::kFull);
    }
  }
  void* data = mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0);
  int channel[2];
  bool sent = false;
  if (data == MAP_FAILED) {
    sent = refuse(SessionStatus::kFull);
  } else if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, channel) != 0) {
    munmap(data, size);
    sent = refuse(SessionStatus::kFull);
  } else if (IsReservedDescriptor(channel[0])) {
    munmap(data, size);
    for (const int end : channel) close(end);
    sent = refuse(SessionStatus::kFull);
  } else {
    const int buffer = 1 << 20;  // Room for the replies of all fills in flight.
    setsockopt(channel[0], SOL_SOCKET, SO_SNDBUF, &buffer, sizeof buffer);
    // Ours is small and will be used at once; what a client brings may be its whole host pool.
    if (request.own == 0) madvise(data, size, MADV_POPULATE_READ);
    auto staging = std::make_shared<MappedStaging>(data, size);
    // What a Commit names as staged lies in the first one: offsets keep their meaning.
    if (first) inbox_.Post(StagingOpened{peer.serial, staging});
    copiers_.AddChannel(peer.serial, channel[0], std::move(staging), peer.protocol);
    reply.size_bytes = size;
    sent = request.own != 0 ? Send(peer.socket, &reply, sizeof reply, {channel[1]})
                            : Send(peer.socket, &reply, sizeof reply, {fd, channel[1]});
    close(channel[1]);
    has = size;
    (request.own != 0 ? use_.own_staging_bytes : use_.staging_bytes) += size;
  }
  if (request.own == 0) close(fd);
  return sent;
}

void SessionServer::CloseSocket(Peer& peer) {
  close(std::exchange(peer.socket, -1));
  // The client may keep its ends of the fill channels, and with them the staging memory.
  if (peer.staging_bytes + peer.own_staging_bytes > 0) copiers_.EndChannels(peer.serial);
  use_.staging_bytes -= std::exchange(peer.staging_bytes, 0);
  use_.own_staging_bytes -= std::exchange(peer.own_staging_bytes, 0);
  if (peer.greeted) {
    inbox_.Post(SessionEnded{peer.serial});
  } else {
    Remove(peer.serial);
  }
}

void SessionServer::Remove(uint32_t serial) {
  const auto it = peers_.find(serial);
  if (it == peers_.end()) return;
  if (it->second->socket >= 0) close(it->second->socket);
  if (it->second->pidfd >= 0) close(it->second->pidfd);
  peers_.erase(it);
}

}  // namespace kvd
