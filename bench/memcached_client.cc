#include "bench/memcached_client.h"

#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "proto/types/status.h"

namespace kvd {
namespace {

constexpr timeval kCallTimeout = {.tv_sec = 20, .tv_usec = 0};
// Read ahead of a value by this much at most, so that nearly all of it comes straight into place.
constexpr size_t kReadAhead = 64;
constexpr size_t kReadAheadOfLines = 16u << 10;

absl::Status WriteAll(int fd, std::vector<iovec> pieces) {
  size_t at = 0;
  while (at < pieces.size()) {
    const int count = static_cast<int>(std::min<size_t>(pieces.size() - at, IOV_MAX));
    const ssize_t written = writev(fd, &pieces[at], count);
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) return ErrnoStatus(errno, "memcached write");
    size_t left = static_cast<size_t>(written);
    while (at < pieces.size() && left >= pieces[at].iov_len) left -= pieces[at++].iov_len;
    if (left > 0) {
      pieces[at].iov_base = static_cast<char*>(pieces[at].iov_base) + left;
      pieces[at].iov_len -= left;
    }
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<MemcachedClient>> MemcachedClient::Connect(const std::string& path) {
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return ErrnoStatus(errno, "memcached socket");
  std::unique_ptr<MemcachedClient> client(new MemcachedClient(fd));
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &kCallTimeout, sizeof kCallTimeout);
  setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &kCallTimeout, sizeof kCallTimeout);
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  path.copy(address.sun_path, sizeof(address.sun_path) - 1);
  if (connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
    return ErrnoStatus(errno, "memcached connect");
  }
  return client;
}

MemcachedClient::~MemcachedClient() { close(fd_); }

absl::StatusOr<uint32_t> MemcachedClient::Set(absl::Span<const std::string> keys,
                                              absl::Span<const absl::Span<const std::byte>> values,
                                              uint32_t depth) {
  uint32_t stored = 0;
  for (size_t from = 0; from < keys.size(); from += depth) {
    const size_t end = std::min(keys.size(), from + depth);
    std::vector<std::string> heads(end - from);
    std::vector<iovec> pieces;
    for (size_t i = from; i < end; ++i) {
      std::string& head = heads[i - from];
      head = absl::StrCat("set ", keys[i], " 0 0 ", values[i].size(), "\r\n");
      pieces.push_back({.iov_base = head.data(), .iov_len = head.size()});
      pieces.push_back(
          {.iov_base = const_cast<std::byte*>(values[i].data()), .iov_len = values[i].size()});
      pieces.push_back({.iov_base = const_cast<char*>("\r\n"), .iov_len = 2});
    }
    if (absl::Status status = WriteAll(fd_, std::move(pieces)); !status.ok()) return status;
    for (size_t i = from; i < end; ++i) {
      const absl::StatusOr<std::string_view> line = ReadLine();
      if (!line.ok()) return line.status();
      if (*line == "STORED") {
        ++stored;
      } else if (*line != "SERVER_ERROR out of memory storing object") {
        return absl::InternalError(absl::StrCat("memcached: ", std::string(*line)));
      }
    }
  }
  return stored;
}

absl::StatusOr<std::vector<bool>> MemcachedClient::Get(
    absl::Span<const std::string> keys, absl::Span<const absl::Span<std::byte>> targets,
    uint32_t depth) {
  std::vector<bool> found(keys.size(), false);
  for (size_t from = 0; from < keys.size(); from += depth) {
    const size_t end = std::min(keys.size(), from + depth);
    command_ = "get";
    for (size_t i = from; i < end; ++i) absl::StrAppend(&command_, " ", keys[i]);
    command_ += "\r\n";
    if (absl::Status status = Write(command_); !status.ok()) return status;
    size_t next = from;  // Values come in the order of the keys; what is missing is left out.
    while (true) {
      const absl::StatusOr<std::string_view> line = ReadLine();
      if (!line.ok()) return line.status();
      if (*line == "END") break;
      while (next < end &&
             *line != absl::StrCat("VALUE ", keys[next], " 0 ", targets[next].size())) {
        ++next;
      }
      if (next == end) return absl::InternalError(absl::StrCat("memcached: ", std::string(*line)));
      if (absl::Status status = ReadInto(targets[next]); !status.ok()) return status;
      std::byte tail[2];
      if (absl::Status status = ReadInto(tail); !status.ok()) return status;
      found[next++] = true;
    }
  }
  return found;
}

absl::StatusOr<uint64_t> MemcachedClient::Exists(absl::Span<const std::string> keys) {
  command_ = "get";
  for (const std::string& key : keys) absl::StrAppend(&command_, " ", key);
  command_ += "\r\n";
  if (absl::Status status = Write(command_); !status.ok()) return status;
  buffer_.clear();
  consumed_ = 0;
  constexpr std::string_view kEnd = "END\r\n";
  while (buffer_.size() < kEnd.size() ||
         buffer_.compare(buffer_.size() - kEnd.size(), kEnd.size(), kEnd) != 0) {
    char bytes[kReadAheadOfLines];
    const ssize_t got = read(fd_, bytes, sizeof bytes);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoStatus(errno, "memcached read");
    if (got == 0) return absl::UnavailableError("memcached: hung up");
    buffer_.append(bytes, static_cast<size_t>(got));
  }
  // Two lines a value.
  const auto lines = std::count(buffer_.begin(), buffer_.end(), '\n');
  buffer_.clear();
  return static_cast<uint64_t>(lines / 2);
}

absl::Status MemcachedClient::Write(std::string_view command) {
  return WriteAll(fd_,
                  {{.iov_base = const_cast<char*>(command.data()), .iov_len = command.size()}});
}

absl::StatusOr<std::string_view> MemcachedClient::ReadLine() {
  buffer_.erase(0, consumed_);
  consumed_ = 0;
  size_t end;
  while ((end = buffer_.find("\r\n")) == std::string::npos) {
    char bytes[kReadAhead];
    const ssize_t got = read(fd_, bytes, sizeof bytes);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoStatus(errno, "memcached read");
    if (got == 0) return absl::UnavailableError("memcached: hung up");
    buffer_.append(bytes, static_cast<size_t>(got));
  }
  consumed_ = end + 2;
  return std::string_view(buffer_).substr(0, end);
}

absl::Status MemcachedClient::ReadInto(absl::Span<std::byte> target) {
  const size_t buffered = std::min(target.size(), buffer_.size() - consumed_);
  std::memcpy(target.data(), buffer_.data() + consumed_, buffered);
  consumed_ += buffered;
  for (size_t at = buffered; at < target.size();) {
    const ssize_t got = read(fd_, target.data() + at, target.size() - at);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return ErrnoStatus(errno, "memcached read");
    if (got == 0) return absl::UnavailableError("memcached: hung up");
    at += static_cast<size_t>(got);
  }
  return absl::OkStatus();
}

}  // namespace kvd
