#include "client/kvctl/connection.h"

#include <fcntl.h>
#include <grpcpp/create_channel_posix.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace kvd::kvctl {
namespace {

constexpr char kSuffix[] = ".admin";
constexpr int kMaxReplyBytes = 64 << 20;  // 10,000 blocks of the longest keys are about 2 MiB.

std::string WhyNot(int error, const std::string& path) {
  switch (error) {
    case ENOENT:
      return absl::StrCat("no daemon: there is no socket ", path,
                          "; start kvd, or say where it listens with --endpoint");
    case ECONNREFUSED:
      return absl::StrCat("no daemon: ", path, " was left over by one that has ended");
    case EACCES:
    case EPERM:
      return absl::StrCat(path, " is not open to this user: run kvctl as the daemon's, or as root");
    case EAGAIN:
      return absl::StrCat("the daemon accepts nobody: the queue of ", path, " is full");
    default:
      return absl::StrCat(path, ": ", std::strerror(error));
  }
}

}  // namespace

absl::StatusOr<std::string> PathOf(const std::string& endpoint) {
  if (!absl::StartsWith(endpoint, "unix:") || endpoint.size() == 5) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--endpoint must be unix:PATH, as the daemon's --listen, and not '", endpoint, "'"));
  }
  std::string path = endpoint.substr(5);
  const size_t most = sizeof(sockaddr_un::sun_path) - sizeof kSuffix;
  if (path.size() > most) {
    return absl::InvalidArgumentError(absl::StrCat("--endpoint: the path of a socket has at most ",
                                                   most, " bytes here, this has ", path.size()));
  }
  return path;
}

absl::Status Connection::Connect() {
  if (stub_ != nullptr) return absl::OkStatus();
  absl::StatusOr<std::string> path = PathOf(endpoint_);
  if (!path.ok()) return path.status();
  *path += kSuffix;
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd < 0) return absl::UnavailableError(absl::StrCat("socket: ", std::strerror(errno)));
  sockaddr_un address{.sun_family = AF_UNIX};
  std::memcpy(address.sun_path, path->data(), path->size());
  if (connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    const int error = errno;
    close(fd);
    return absl::UnavailableError(WhyNot(error, *path));
  }
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxReplyBytes);
  stub_ = v1::Admin::NewStub(
      grpc::CreateCustomInsecureChannelFromFd("kvd", fd, arguments));  // Owns the socket now.
  return absl::OkStatus();
}

absl::StatusOr<Connection::Admin*> Connection::Stub() {
  if (absl::Status status = Connect(); !status.ok()) return status;
  return stub_.get();
}

absl::Status Connection::Explain(const grpc::Status& status) {
  switch (status.error_code()) {
    case grpc::StatusCode::UNAVAILABLE:
      stub_ = nullptr;
      return absl::UnavailableError("the daemon went away");
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      return absl::DeadlineExceededError(absl::StrCat(
          "the daemon did not answer within ", absl::FormatDuration(timeout_), " (--timeout)"));
    case grpc::StatusCode::UNIMPLEMENTED:
      return absl::UnimplementedError(
          "this daemon does not know the call: it is older than this kvctl");
    default:
      return {static_cast<absl::StatusCode>(status.error_code()), status.error_message()};
  }
}

}  // namespace kvd::kvctl
