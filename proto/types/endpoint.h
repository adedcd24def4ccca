// Where a daemon listens, and where its clients look for it, when nobody says.

#pragma once

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

}  // namespace kvd
