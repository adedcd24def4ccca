#include "daemon/unix_listener.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>

#include "absl/strings/str_cat.h"
#include "proto/types/status.h"

namespace kvd {
namespace {

constexpr int kBacklog = 128;

}  // namespace

absl::StatusOr<int> ListenUnix(const std::string& path, int type) {
  sockaddr_un address{.sun_family = AF_UNIX};
  if (path.size() >= sizeof address.sun_path) {
    return absl::InvalidArgumentError(absl::StrCat("socket path too long: ", path));
  }
  path.copy(address.sun_path, sizeof address.sun_path - 1);
  const int fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
  if (fd >= 0) {
    unlink(path.c_str());
    if (bind(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0 &&
        chmod(path.c_str(), 0600) == 0 && listen(fd, kBacklog) == 0) {
      return fd;
    }
  }
  absl::Status status = ErrnoStatus(errno, absl::StrCat("listening at ", path));
  if (fd >= 0) close(fd);
  return status;
}

}  // namespace kvd
