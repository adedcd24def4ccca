// An authority, a server and a client of it, made by openssl(1) for one run: what TLS on loopback
// needs to be measured or tested.
//
// Threads: one at a time.

#pragma once

#include <string>

#include "absl/status/status.h"

namespace kvd {

// What the server's certificate says it is; the client's says spiffe://kvd.test/client.
inline constexpr char kTestServerName[] = "kvd.test";

// Writes ca.pem, server.pem, server.key, client.pem and client.key into `folder`.
absl::Status MakeCertificates(const std::string& folder);

}  // namespace kvd
