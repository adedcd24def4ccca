#include "client/session.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "proto/types/limits.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22  // Linux 5.14; glibc 2.36 has it, older headers do not.
#define MADV_POPULATE_WRITE 23
#endif

namespace kvd {
namespace {

// Bounds of what one session keeps mapped. The daemon does not say which regions are gone, and a
// mapping of one keeps its memory alive; so what was not used for longest goes first.
// TODO(limit): 4,096 regions of 256 MiB are 1 TiB; a larger arena would map and unmap all the time.
constexpr size_t kMaxMappedRegions = 4096;
constexpr int kMaxDescriptors = 4;  // More than any message carries.
constexpr uint64_t kPopulateStep = 32u
                                   << 20;  // Bytes: some milliseconds between looks at the clock.

absl::Status ErrnoStatus(const char* what) {
  const int error = errno;
  const std::string text = absl::StrCat(what, ": ", std::strerror(error));
  if (error == ENOENT || error == ECONNREFUSED || error == EPIPE || error == ECONNRESET) {
    return absl::UnavailableError(text);
  }
  if (error == EAGAIN || error == ETIMEDOUT) return absl::DeadlineExceededError(text);
  if (error == EACCES || error == EPERM) return absl::PermissionDeniedError(text);
  return absl::InternalError(text);
}

// An AF_UNIX connect() waits for room in the backlog, poll() does not announce it, and a
// non-blocking one fails at once. So the socket blocks here, with the send timeout that bounds it.
absl::StatusOr<UniqueFd> Connect(const std::string& path, absl::Time deadline) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError("endpoint: the path is empty or too long for a Unix socket");
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  UniqueFd fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (fd.get() < 0) return ErrnoStatus("session socket");

  const absl::Duration left = std::max(deadline - absl::Now(), absl::Milliseconds(1));
  const timeval timeout = absl::ToTimeval(left);
  if (setsockopt(fd.get(), SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout)) != 0) {
    return ErrnoStatus("session socket timeout");
  }
  if (connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return ErrnoStatus("session connect");
  }
  return fd;
}

// Best effort: fills in page tables (`advice` is MADV_POPULATE_READ or _WRITE), so that the copy
// does not fault page by page. It may take a part of the call's time, not all: what is not
// populated faults later.
void Populate(const Mapping& mapping, int advice, absl::Time deadline) {
  const absl::Time start = absl::Now();
  const absl::Time enough = start + (deadline - start) / 4;
  for (uint64_t at = 0; at < mapping.size() && absl::Now() < enough; at += kPopulateStep) {
    const uint64_t step = std::min(kPopulateStep, mapping.size() - at);
    if (madvise(mapping.data() + at, step, advice) != 0) return;
  }
}

absl::Status ToStatus(SessionStatus status, const char* what) {
  switch (status) {
    case SessionStatus::kOk:
      return absl::OkStatus();
    case SessionStatus::kVersion:
      return absl::FailedPreconditionError(absl::StrCat(what, ": no protocol version in common"));
    case SessionStatus::kFull:
      return absl::ResourceExhaustedError(absl::StrCat(what, ": the daemon is full"));
    case SessionStatus::kNotFound:
      return absl::NotFoundError(absl::StrCat(what, ": no such region"));
    case SessionStatus::kRefused:
      return absl::PermissionDeniedError(
          absl::StrCat(what, ": the daemon's configuration names no domain for user ", geteuid()));
    case SessionStatus::kInvalid:
      break;
  }
  return absl::InternalError(absl::StrCat(what, ": refused"));
}

}  // namespace

// ---- descriptors and mappings -------------------------------------------------------------------

UniqueFd& UniqueFd::operator=(UniqueFd&& other) noexcept {
  std::swap(fd_, other.fd_);
  return *this;
}

UniqueFd::~UniqueFd() {
  if (fd_ >= 0) close(fd_);
}

Mapping::Mapping(Mapping&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

Mapping& Mapping::operator=(Mapping&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

Mapping::~Mapping() {
  if (data_ != nullptr) munmap(data_, size_);
}

absl::StatusOr<Mapping> Mapping::Map(int fd, uint64_t size_bytes, Access access) {
  struct stat file;
  if (fstat(fd, &file) != 0) return ErrnoStatus("fstat");
  if (size_bytes == 0 || static_cast<uint64_t>(file.st_size) < size_bytes) {
    return absl::DataLossError("shared memory is shorter than announced");
  }
  const int protection = access == Access::kRead ? PROT_READ : PROT_READ | PROT_WRITE;
  void* data = mmap(nullptr, size_bytes, protection, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED) return ErrnoStatus("mmap");
  Mapping mapping;
  mapping.data_ = static_cast<std::byte*>(data);
  mapping.size_ = size_bytes;
  return mapping;
}

// ---- the session --------------------------------------------------------------------------------

absl::StatusOr<std::unique_ptr<Session>> Session::Open(const std::string& path,
                                                       const SessionToken& finished,
                                                       absl::Time deadline) {
  absl::StatusOr<UniqueFd> socket = Connect(path, deadline);
  if (!socket.ok()) return socket.status();

  SessionHello hello;
  hello.version_min = kProtocolVersion;  // Daemons understand older clients, not the reverse.
  hello.version_max = kProtocolVersion;
  hello.finished_session = finished;
  const absl::Status sent = SendMessage(socket->get(), &hello, sizeof(hello), deadline);
  if (!sent.ok() && !absl::IsUnavailable(sent)) return sent;

  // A daemon that is full says so and hangs up, maybe before it got our hello. The hang-up is then
  // reported first, once, and what it said after that.
  SessionWelcome welcome;
  std::vector<UniqueFd> fds;
  absl::StatusOr<size_t> size =
      ReceiveMessage(socket->get(), &welcome, sizeof(welcome), fds, deadline);
  if (absl::IsUnavailable(size.status())) {
    size = ReceiveMessage(socket->get(), &welcome, sizeof(welcome), fds, deadline);
  }
  if (!size.ok()) return size.status();
  if (*size != sizeof(welcome) || welcome.kind != SessionMessage::kWelcome) {
    return absl::InternalError("session: not a welcome");
  }
  if (absl::Status status = ToStatus(welcome.status, "session"); !status.ok()) return status;
  if (welcome.version != kProtocolVersion) {
    return ToStatus(SessionStatus::kVersion, "session");
  }
  return std::unique_ptr<Session>(new Session(*std::move(socket), welcome.token));
}

bool Session::ended() const {
  if (ended_.load(std::memory_order_relaxed)) return true;
  pollfd hang_up{socket_.get(), 0, 0};  // POLLHUP and POLLERR are always reported.
  return poll(&hang_up, 1, 0) != 0;
}

void Session::End() {
  ended_.store(true, std::memory_order_relaxed);
  shutdown(socket_.get(), SHUT_RDWR);  // The descriptor itself goes when its last reader does.
}

template <typename Request, typename Reply>
absl::StatusOr<Reply> Session::Exchange(const Request& request, std::vector<UniqueFd>& fds,
                                        absl::Time deadline, int passed_fd) {
  if (ended_.load(std::memory_order_relaxed)) return absl::UnavailableError("session ended");
  Reply reply;
  absl::Status status = SendMessage(socket_.get(), &request, sizeof(request), deadline, passed_fd);
  if (status.ok()) {
    absl::StatusOr<size_t> size =
        ReceiveMessage(socket_.get(), &reply, sizeof(reply), fds, deadline);
    status = size.status();
    if (size.ok() && (*size != sizeof(reply) || reply.kind != Reply().kind)) {
      status = absl::InternalError("session: an answer of the wrong kind");
    }
  }
  if (!status.ok()) {
    End();
    return status;
  }
  return reply;
}

absl::StatusOr<std::shared_ptr<const Region>> Session::GetRegion(uint32_t number,
                                                                 absl::Time deadline) {
  if (std::shared_ptr<const Region> known = FindRegion(number)) return known;
  TurnLock lock(exchange_, deadline);
  if (!lock.held()) return absl::DeadlineExceededError("region: others are asking");
  if (std::shared_ptr<const Region> known = FindRegion(number)) return known;

  RegionRequest request;
  request.region = number;
  std::vector<UniqueFd> fds;
  absl::StatusOr<RegionReply> reply = Exchange<RegionRequest, RegionReply>(request, fds, deadline);
  if (!reply.ok()) return reply.status();
  if (absl::Status status = ToStatus(reply->status, "region"); !status.ok()) return status;
  if (reply->region != number || fds.size() != 1) {
    End();
    return absl::InternalError("region: an answer to another question");
  }
  absl::StatusOr<Mapping> mapping =
      Mapping::Map(fds[0].get(), reply->size_bytes, Mapping::Access::kRead);
  if (!mapping.ok()) return mapping.status();
  Populate(*mapping, MADV_POPULATE_READ, deadline);
  auto region = std::make_shared<const Region>(number, *std::move(mapping));
  RememberRegion(region);
  return region;
}

std::shared_ptr<const Region> Session::FindRegion(uint32_t number) {
  absl::MutexLock lock(&mu_);
  auto found = regions_.find(number);
  if (found == regions_.end()) return nullptr;
  found->second.last_use = ++uses_;
  return found->second.region;
}

void Session::RememberRegion(std::shared_ptr<const Region> region) {
  std::shared_ptr<const Region> dropped;  // Unmapped after the lock is free.
  absl::MutexLock lock(&mu_);
  if (regions_.size() >= kMaxMappedRegions) {
    auto oldest = std::min_element(regions_.begin(), regions_.end(), [](auto& a, auto& b) {
      return a.second.last_use < b.second.last_use;
    });
    dropped = std::move(oldest->second.region);
    regions_.erase(oldest);
  }
  const uint32_t number = region->number();
  regions_[number] = {std::move(region), ++uses_};
}

absl::StatusOr<StagingMemory> Session::OpenStaging(uint64_t size_bytes, absl::Time deadline) {
  TurnLock lock(exchange_, deadline);
  if (!lock.held()) return absl::DeadlineExceededError("staging: others are asking");
  StagingRequest request;
  request.size_bytes = size_bytes;
  std::vector<UniqueFd> fds;
  absl::StatusOr<StagingReply> reply =
      Exchange<StagingRequest, StagingReply>(request, fds, deadline);
  if (!reply.ok()) return reply.status();
  if (absl::Status status = ToStatus(reply->status, "staging"); !status.ok()) return status;
  if (fds.size() != 2 || reply->size_bytes > size_bytes) {
    End();
    return absl::InternalError("staging: an answer to another question");
  }
  absl::StatusOr<Mapping> memory =
      Mapping::Map(fds[0].get(), reply->size_bytes, Mapping::Access::kReadWrite);
  if (!memory.ok()) return memory.status();
  Populate(*memory, MADV_POPULATE_WRITE, deadline);
  return StagingMemory{*std::move(memory), std::move(fds[1])};
}

absl::StatusOr<UniqueFd> Session::OpenOwnStaging(int fd, uint64_t size_bytes, absl::Time deadline) {
  TurnLock lock(exchange_, deadline);
  if (!lock.held()) return absl::DeadlineExceededError("own memory: others are asking");
  StagingRequest request;
  request.own = 1;
  request.size_bytes = size_bytes;
  std::vector<UniqueFd> fds;
  absl::StatusOr<StagingReply> reply =
      Exchange<StagingRequest, StagingReply>(request, fds, deadline, fd);
  if (!reply.ok()) return reply.status();
  if (reply->status == SessionStatus::kInvalid) {
    return absl::FailedPreconditionError(
        "own memory: the daemon does not take it: its bound is lower, or its version is older");
  }
  if (absl::Status status = ToStatus(reply->status, "own memory"); !status.ok()) return status;
  if (fds.size() != 1 || reply->size_bytes != size_bytes) {
    End();
    return absl::InternalError("own memory: an answer to another question");
  }
  return std::move(fds[0]);
}

// ---- sockets ------------------------------------------------------------------------------------

absl::Status PollUntil(int fd, short events, absl::Time deadline) {
  while (true) {
    const absl::Duration left = std::max(deadline - absl::Now(), absl::ZeroDuration());
    const timespec timeout = absl::ToTimespec(std::min(left, absl::Hours(1)));
    pollfd waiting{fd, events, 0};
    const int ready = ppoll(&waiting, 1, &timeout, nullptr);
    if (ready > 0) return absl::OkStatus();
    if (ready == 0 && left == absl::ZeroDuration()) {
      return absl::DeadlineExceededError("the daemon does not answer");
    }
    if (ready < 0 && errno != EINTR) return ErrnoStatus("poll");
  }
}

absl::Status SendMessage(int fd, const void* data, size_t size, absl::Time deadline,
                         int passed_fd) {
  iovec bytes{const_cast<void*>(data), size};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &bytes;
  message.msg_iovlen = 1;
  if (passed_fd >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &passed_fd, sizeof(int));
  }
  while (sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) {
    if (errno == EINTR) continue;
    if (errno != EAGAIN) return ErrnoStatus("send");
    if (absl::Status status = PollUntil(fd, POLLOUT, deadline); !status.ok()) return status;
  }
  return absl::OkStatus();  // A SEQPACKET message goes whole or not at all.
}

absl::StatusOr<size_t> ReceiveMessage(int fd, void* data, size_t capacity,
                                      std::vector<UniqueFd>& fds, absl::Time deadline) {
  iovec bytes{data, capacity};
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxDescriptors * sizeof(int))];
  msghdr message{};
  ssize_t size;
  while (true) {
    message.msg_iov = &bytes;
    message.msg_iovlen = 1;
    message.msg_control = control;
    message.msg_controllen = sizeof(control);
    size = recvmsg(fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (size >= 0) break;
    if (errno == EINTR) continue;
    if (errno != EAGAIN) return ErrnoStatus("receive");
    if (absl::Status status = PollUntil(fd, POLLIN, deadline); !status.ok()) return status;
  }
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
       header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int received;
      std::memcpy(&received, CMSG_DATA(header) + i * sizeof(int), sizeof(int));
      fds.emplace_back(received);
    }
  }
  if (size == 0) return absl::UnavailableError("the daemon hung up");
  if ((message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0) {
    return absl::DataLossError("a message is longer than it may be");
  }
  return static_cast<size_t>(size);
}

}  // namespace kvd
