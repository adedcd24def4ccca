// The bare stream that a get over TLS is measured against: a gRPC server that sends the same bytes
// in the same messages over the same TLS, and neither finds, holds nor sums anything.
//
// Threads: one.

#pragma once

#include <string>

#include "absl/status/status.h"

namespace kvd {

// Serves on 127.0.0.1 until it is killed, with the certificates in `folder`; writes the port to
// `folder`/port.
absl::Status ServeBareStream(const std::string& folder);

}  // namespace kvd
