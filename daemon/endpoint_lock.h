// Who may serve a socket path: the holder of an exclusive lock on PATH.lock. The lock ends with the
// process, however it ends, so a socket file without its lock held is stale and may be replaced.
//
// Threads: immutable after construction.

#pragma once

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "proto/types/status.h"

namespace kvd {

class EndpointLock {
 public:
  // kAlreadyExists when another daemon serves the path.
  static absl::StatusOr<EndpointLock> Take(const std::string& path) {
    const std::string name = path + ".lock";
    const int fd = open(name.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0) return ErrnoStatus(errno, absl::StrCat("opening ", name));
    EndpointLock lock(fd);
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
      return absl::AlreadyExistsError(absl::StrCat("another kvd serves unix:", path));
    }
    return lock;
  }
  EndpointLock(EndpointLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  EndpointLock& operator=(EndpointLock&&) = delete;
  ~EndpointLock() {
    if (fd_ >= 0) close(fd_);  // The file stays: unlinking it would let two daemons lock two files.
  }

 private:
  explicit EndpointLock(int fd) : fd_(fd) {}
  int fd_;
};

}  // namespace kvd
