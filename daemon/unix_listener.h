// Listening on a Unix socket.

#pragma once

#include <string>

#include "absl/status/statusor.h"

namespace kvd {

// A non-blocking socket of `type` (SOCK_STREAM, SOCK_SEQPACKET) that listens at `path`, in place of
// a stale file. Only our own user may connect until the caller says otherwise. The caller closes it
// and removes the file.
// Requires: the endpoint is the caller's, see EndpointLock.
//   kInvalidArgument  the path is too long for a socket.
//   as errno          otherwise, with the path.
absl::StatusOr<int> ListenUnix(const std::string& path, int type);

}  // namespace kvd
