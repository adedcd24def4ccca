#include "tests/e2e/raw_session.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>

#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "client/convert.h"
#include "proto/types/status.h"

namespace kvd {

NamespaceDescriptor TestModel(uint32_t part_bytes, std::string model) {
  NamespaceDescriptor descriptor;
  descriptor.model = std::move(model);
  descriptor.hash_bytes = kE2eHashBytes;
  descriptor.groups = {{.block_tokens = 16, .part_bytes = part_bytes}};
  return descriptor;
}

std::string TestKey(int block) {
  std::string key = absl::StrFormat("block %010d", block);
  key.resize(kE2eHashBytes);
  return key;
}

std::string TestKeys(int first, int count) {
  std::string keys;
  for (int i = 0; i < count; ++i) keys += TestKey(first + i);
  return keys;
}

std::vector<std::byte> TestBytes(std::string_view key, uint32_t size) {
  uint64_t state = 14695981039346656037u;
  for (const char c : key) state = (state ^ static_cast<uint8_t>(c)) * 1099511628211u;
  std::vector<std::byte> bytes(size);
  for (std::byte& byte : bytes) {
    state = state * 6364136223846793005u + 1442695040888963407u;
    byte = static_cast<std::byte>(state >> 56);
  }
  return bytes;
}

absl::StatusOr<UniqueFd> RawSession::Connect(const std::string& path) {
  UniqueFd fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  sockaddr_un address{.sun_family = AF_UNIX};
  const std::string name = path + ".session";
  if (name.size() >= sizeof address.sun_path) return absl::InvalidArgumentError("path too long");
  std::memcpy(address.sun_path, name.c_str(), name.size() + 1);
  if (connect(fd.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) {
    return ErrnoStatus(errno, "connecting to " + name);
  }
  return fd;
}

absl::StatusOr<std::unique_ptr<RawSession>> RawSession::Open(const std::string& path) {
  absl::StatusOr<UniqueFd> fd = Connect(path);
  if (!fd.ok()) return fd.status();
  const absl::Time deadline = absl::Now() + kPatience;
  const SessionHello hello{.version_min = kProtocolVersion, .version_max = kProtocolVersion};
  if (absl::Status sent = SendMessage(fd->get(), &hello, sizeof hello, deadline); !sent.ok()) {
    return sent;
  }
  SessionWelcome welcome;
  std::vector<UniqueFd> none;
  const auto size = ReceiveMessage(fd->get(), &welcome, sizeof welcome, none, deadline);
  if (!size.ok()) return size.status();
  if (*size != sizeof welcome || welcome.status != SessionStatus::kOk) {
    return absl::FailedPreconditionError("no welcome");
  }
  auto session = std::make_unique<RawSession>();
  session->socket_ = *std::move(fd);
  session->token_.assign(welcome.token.begin(), welcome.token.end());
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(-1);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  session->stub_ = v1::Engine::NewStub(
      grpc::CreateCustomChannel("unix:" + path, grpc::InsecureChannelCredentials(), arguments));
  return session;
}

absl::StatusOr<RawSession::RegionAnswer> RawSession::AskForRegion(uint32_t number) {
  const absl::Time deadline = absl::Now() + kPatience;
  const RegionRequest request{.region = number};
  if (absl::Status sent = SendMessage(socket(), &request, sizeof request, deadline); !sent.ok()) {
    return sent;
  }
  RegionReply reply;
  std::vector<UniqueFd> fds;
  const auto size = ReceiveMessage(socket(), &reply, sizeof reply, fds, deadline);
  if (!size.ok()) return size.status();
  RegionAnswer answer{reply.status, reply.size_bytes, UniqueFd()};
  if (!fds.empty()) answer.fd = std::move(fds[0]);
  return answer;
}

absl::StatusOr<RawSession::StagingAnswer> RawSession::AskForStaging(uint64_t size_bytes, int own) {
  const absl::Time deadline = absl::Now() + kPatience;
  StagingRequest request{.own = own >= 0, .size_bytes = size_bytes};
  iovec io{&request, sizeof request};
  msghdr header{};
  header.msg_iov = &io;
  header.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  if (own >= 0) {
    header.msg_control = control;
    header.msg_controllen = sizeof control;
    cmsghdr* part = CMSG_FIRSTHDR(&header);
    part->cmsg_level = SOL_SOCKET;
    part->cmsg_type = SCM_RIGHTS;
    part->cmsg_len = CMSG_LEN(sizeof own);
    std::memcpy(CMSG_DATA(part), &own, sizeof own);
  }
  if (sendmsg(socket(), &header, MSG_NOSIGNAL) != sizeof request) {
    return ErrnoStatus(errno, "sendmsg");
  }
  StagingReply reply;
  std::vector<UniqueFd> fds;
  const auto size = ReceiveMessage(socket(), &reply, sizeof reply, fds, deadline);
  if (!size.ok()) return size.status();
  StagingAnswer answer{reply.status, reply.size_bytes, UniqueFd(), UniqueFd()};
  if (reply.status != SessionStatus::kOk) return answer;
  if (fds.size() != (own >= 0 ? 1 : 2)) return absl::InternalError("descriptors are missing");
  answer.channel = std::move(fds.back());
  if (own < 0) answer.memory = std::move(fds[0]);
  return answer;
}

uint32_t RawSession::Register(const NamespaceDescriptor& descriptor) {
  v1::RegisterNamespaceRequest request;
  *request.mutable_describes() = ToProto(descriptor);
  v1::RegisterNamespaceReply reply;
  return Call(&v1::Engine::Stub::RegisterNamespace, request, &reply).ok() ? reply.namespace_id()
                                                                          : 0;
}

absl::StatusOr<std::unique_ptr<RawStaging>> RawStaging::Open(RawSession& session,
                                                             uint64_t size_bytes) {
  absl::StatusOr<RawSession::StagingAnswer> answer = session.AskForStaging(size_bytes);
  if (!answer.ok()) return answer.status();
  if (answer->status != SessionStatus::kOk) return absl::ResourceExhaustedError("no staging");
  absl::StatusOr<Mapping> memory =
      Mapping::Map(answer->memory.get(), answer->size_bytes, Mapping::Access::kReadWrite);
  if (!memory.ok()) return memory.status();
  auto staging = std::make_unique<RawStaging>();
  staging->memory_ = *std::move(memory);
  staging->channel_ = std::move(answer->channel);
  return staging;
}

bool RawStaging::Send(const std::vector<FillRequest>& fills) {
  const absl::Time deadline = absl::Now() + kPatience;
  for (size_t i = 0; i < fills.size(); i += kMaxFillsPerMessage) {
    const size_t count = std::min<size_t>(kMaxFillsPerMessage, fills.size() - i);
    if (!SendMessage(channel(), &fills[i], count * sizeof(FillRequest), deadline).ok()) {
      return false;
    }
  }
  return true;
}

std::vector<FillReply> RawStaging::Receive(size_t count) {
  std::vector<FillReply> replies;
  std::vector<UniqueFd> none;
  while (replies.size() < count) {
    FillReply message[kMaxFillsPerMessage];
    const auto size =
        ReceiveMessage(channel(), message, sizeof message, none, absl::Now() + kPatience);
    if (!size.ok()) break;
    replies.insert(replies.end(), message, message + *size / sizeof(FillReply));
  }
  return replies;
}

bool HangsUp(int fd) {
  const absl::Time deadline = absl::Now() + kPatience;
  while (PollUntil(fd, POLLIN, deadline).ok()) {
    char byte;
    const ssize_t got = recv(fd, &byte, sizeof byte, MSG_DONTWAIT);
    if (got == 0 || (got < 0 && errno != EAGAIN)) return true;
  }
  return false;
}

}  // namespace kvd
