// Where a daemon listens, and where its clients look for it, when nobody says.

#pragma once

#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

namespace kvd {

// $KVD_ENDPOINT, or a socket of this user's own: in $XDG_RUNTIME_DIR, or else in /tmp.
inline std::string DefaultEndpoint() {
  if (const char* endpoint = std::getenv("KVD_ENDPOINT")) return endpoint;
  const char* runtime = std::getenv("XDG_RUNTIME_DIR");
  if (runtime != nullptr && *runtime == '/') return std::string("unix:") + runtime + "/kvd.sock";
  return "unix:/tmp/kvd-" + std::to_string(getuid()) + ".sock";
}

// Where the daemon of the package listens, whoever its user is.
inline constexpr const char* kPackagedSocket = "/run/kvd/kvd.sock";

// Where a client looks: DefaultEndpoint(), unless nobody named it, there is no socket there, and
// there is one at `packaged`.
inline std::string FindEndpoint(const std::string& packaged = kPackagedSocket) {
  const auto is_socket = [](const std::string& path) {
    struct stat info;
    return stat(path.c_str(), &info) == 0 && S_ISSOCK(info.st_mode);
  };
  const std::string endpoint = DefaultEndpoint();
  if (std::getenv("KVD_ENDPOINT") != nullptr) return endpoint;
  constexpr size_t kScheme = 5;  // "unix:"
  if (!is_socket(endpoint.substr(kScheme)) && is_socket(packaged)) return "unix:" + packaged;
  return endpoint;
}

}  // namespace kvd
