// The groups of the process at the other end of a Unix socket.

#pragma once

#include <sys/socket.h>
#include <sys/types.h>

#include <cerrno>
#include <vector>

namespace kvd {

// All groups of the peer when it connected. Without the supplementary ones where the kernel does
// not tell them: that can only make it a member of less.
inline std::vector<gid_t> PeerGroups(int socket, gid_t primary) {
  std::vector<gid_t> groups(64);
  socklen_t size = static_cast<socklen_t>(groups.size() * sizeof(gid_t));
  int failed = getsockopt(socket, SOL_SOCKET, SO_PEERGROUPS, groups.data(), &size);
  if (failed != 0 && errno == ERANGE) {  // Now `size` says how much it takes.
    groups.resize(size / sizeof(gid_t));
    failed = getsockopt(socket, SOL_SOCKET, SO_PEERGROUPS, groups.data(), &size);
  }
  groups.resize(failed == 0 ? size / sizeof(gid_t) : 0);
  groups.push_back(primary);
  return groups;
}

}  // namespace kvd
