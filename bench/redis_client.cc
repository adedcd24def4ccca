#include "bench/redis_client.h"

#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdlib>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "proto/types/status.h"

namespace kvd {
namespace {

constexpr absl::Duration kStartTimeout = absl::Seconds(10);
constexpr timeval kCallTimeout = {.tv_sec = 20, .tv_usec = 0};

iovec Piece(const void* data, size_t size) {
  return {.iov_base = const_cast<void*>(data), .iov_len = size};
}

// Moves all bytes of `pieces`, which it uses up, by writev() or readv().
template <typename Move>
absl::Status MoveAll(int fd, std::vector<iovec>& pieces, const char* what, Move move) {
  size_t at = 0;
  while (at < pieces.size()) {
    const int count = static_cast<int>(std::min<size_t>(pieces.size() - at, IOV_MAX));
    const ssize_t moved = move(fd, &pieces[at], count);
    if (moved < 0 && errno == EINTR) continue;
    if (moved < 0) return ErrnoStatus(errno, what);
    if (moved == 0) return absl::UnavailableError("redis: hung up");
    for (size_t left = static_cast<size_t>(moved); left > 0 || pieces[at].iov_len == 0;) {
      const size_t step = std::min(left, pieces[at].iov_len);
      pieces[at].iov_base = static_cast<char*>(pieces[at].iov_base) + step;
      pieces[at].iov_len -= step;
      left -= step;
      if (pieces[at].iov_len > 0) break;
      if (++at == pieces.size()) break;
    }
  }
  return absl::OkStatus();
}

absl::Status WriteAll(int fd, std::vector<iovec> pieces) {
  return MoveAll(fd, pieces, "redis write", writev);
}
absl::Status ReadAll(int fd, std::vector<iovec> pieces) {
  return MoveAll(fd, pieces, "redis read", readv);
}

void AppendBulk(std::string& command, std::string_view bytes) {
  absl::StrAppend(&command, "$", bytes.size(), "\r\n");
  command.append(bytes).append("\r\n");
}

}  // namespace

absl::StatusOr<std::unique_ptr<RedisClient>> RedisClient::Connect(const std::string& path) {
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return ErrnoStatus(errno, "redis socket");
  std::unique_ptr<RedisClient> client(new RedisClient(fd));
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &kCallTimeout, sizeof kCallTimeout);
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &kCallTimeout, sizeof kCallTimeout);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  if (connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return ErrnoStatus(errno, "redis connect");
  }
  return client;
}

RedisClient::~RedisClient() { close(fd_); }

absl::Status RedisClient::Set(absl::Span<const std::string> keys,
                              absl::Span<const absl::Span<const std::byte>> values,
                              uint32_t depth) {
  constexpr std::string_view kOk = "+OK\r\n";
  for (size_t from = 0; from < keys.size(); from += depth) {
    const size_t end = std::min(keys.size(), from + depth);
    std::vector<std::string> heads;
    heads.reserve(end - from);
    std::vector<iovec> pieces;
    for (size_t i = from; i < end; ++i) {
      std::string& head = heads.emplace_back("*3\r\n$3\r\nSET\r\n");
      AppendBulk(head, keys[i]);
      absl::StrAppend(&head, "$", values[i].size(), "\r\n");
      pieces.push_back(Piece(head.data(), head.size()));
      pieces.push_back(Piece(values[i].data(), values[i].size()));
      pieces.push_back(Piece("\r\n", 2));
    }
    if (absl::Status status = WriteAll(fd_, std::move(pieces)); !status.ok()) return status;
    std::string answer((end - from) * kOk.size(), '\0');
    absl::Status status = ReadAll(fd_, {Piece(answer.data(), answer.size())});
    if (!status.ok()) return status;
    for (size_t i = 0; i < answer.size(); i += kOk.size()) {
      if (answer.compare(i, kOk.size(), kOk) != 0) return absl::InternalError("redis: SET failed");
    }
  }
  return absl::OkStatus();
}

absl::Status RedisClient::Get(absl::Span<const std::string> keys,
                              absl::Span<const absl::Span<std::byte>> targets, uint32_t depth) {
  for (size_t from = 0; from < keys.size(); from += depth) {
    const size_t end = std::min(keys.size(), from + depth);
    command_.clear();
    // The answer is "$<length>\r\n<bytes>\r\n"; the length is known, so all of it has its place.
    std::vector<std::string> expected, heads;
    heads.reserve(end - from);
    std::vector<char> tails(2 * (end - from));
    std::vector<iovec> pieces;
    for (size_t i = from; i < end; ++i) {
      command_ += "*2\r\n$3\r\nGET\r\n";
      AppendBulk(command_, keys[i]);
      expected.push_back(absl::StrCat("$", targets[i].size(), "\r\n"));
      heads.emplace_back(expected.back().size(), '\0');
      pieces.push_back(Piece(heads.back().data(), heads.back().size()));
      pieces.push_back(Piece(targets[i].data(), targets[i].size()));
      pieces.push_back(Piece(&tails[2 * (i - from)], 2));
    }
    absl::Status status = WriteAll(fd_, {Piece(command_.data(), command_.size())});
    if (!status.ok()) return status;
    if (status = ReadAll(fd_, std::move(pieces)); !status.ok()) return status;
    if (heads != expected) return absl::NotFoundError("redis: a value is not as it was set");
  }
  return absl::OkStatus();
}

absl::Status RedisClient::SetMany(absl::Span<const std::string_view> keys, std::string_view value) {
  command_ = absl::StrCat("*", 1 + 2 * keys.size(), "\r\n$4\r\nMSET\r\n");
  for (std::string_view key : keys) {
    AppendBulk(command_, key);
    AppendBulk(command_, value);
  }
  absl::Status status = WriteAll(fd_, {Piece(command_.data(), command_.size())});
  if (!status.ok()) return status;
  char answer[5];
  if (status = ReadAll(fd_, {Piece(answer, sizeof answer)}); !status.ok()) return status;
  return std::string_view(answer, sizeof answer) == "+OK\r\n"
             ? absl::OkStatus()
             : absl::InternalError("redis: MSET failed");
}

absl::StatusOr<uint64_t> RedisClient::Exists(absl::Span<const std::string_view> keys) {
  command_ = absl::StrCat("*", 1 + keys.size(), "\r\n$6\r\nEXISTS\r\n");
  for (std::string_view key : keys) AppendBulk(command_, key);
  absl::Status status = WriteAll(fd_, {Piece(command_.data(), command_.size())});
  if (!status.ok()) return status;
  std::string answer;
  while (answer.empty() || answer.back() != '\n') {
    char bytes[64];
    const ssize_t got = read(fd_, bytes, sizeof bytes);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return ErrnoStatus(got < 0 ? errno : EPIPE, "redis read");
    answer.append(bytes, static_cast<size_t>(got));
  }
  if (answer.front() != ':') return absl::InternalError("redis: EXISTS failed");
  return std::strtoull(answer.c_str() + 1, nullptr, 10);
}

absl::StatusOr<std::unique_ptr<RedisServer>> RedisServer::Start(const std::string& folder) {
  const std::string path = folder + "/redis.sock";
  absl::StatusOr<std::unique_ptr<ChildProcess>> process =
      ChildProcess::Start({"redis-server", "--port", "0", "--unixsocket", path, "--save", "",
                           "--appendonly", "no", "--daemonize", "no", "--dir", folder});
  if (!process.ok()) return process.status();
  const absl::Time deadline = absl::Now() + kStartTimeout;
  while (true) {
    absl::StatusOr<std::unique_ptr<RedisClient>> client = RedisClient::Connect(path);
    if (client.ok()) {
      return std::unique_ptr<RedisServer>(new RedisServer(*std::move(process), *std::move(client)));
    }
    if (!(*process)->running() || absl::Now() > deadline) return client.status();
    absl::SleepFor(absl::Milliseconds(5));
  }
}

}  // namespace kvd
