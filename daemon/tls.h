// What TLS needs, read and checked at start: the daemon's certificate and key, and the authorities
// whose clients may connect. All of it is checked here, because gRPC would say no more than that it
// does not serve.
//
// Threads: all functions are safe from any; Tls13Only() before gRPC starts.

#pragma once

#include <ctime>
#include <string>

#include "absl/status/statusor.h"

namespace kvd {

struct TlsPaths {  // PEM files.
  std::string certificate;
  std::string key;
  std::string client_ca;
};

struct TlsIdentity {  // What is in them.
  std::string certificate;
  std::string key;
  std::string client_ca;
};

// Reads the three files. kInvalidArgument names the option, the file and what to do: missing,
// unreadable, not PEM, encrypted, not of each other, not yet or no longer good at `now`.
absl::StatusOr<TlsIdentity> ReadTls(const TlsPaths& paths, std::time_t now);

// Makes TLS 1.3 the only version that gRPC's servers of this process agree to. gRPC 1.51 has no
// option for it: its list of cipher suites, which only TLS 1.2 heeds, is set to one that nobody can
// use, because it takes a pre-shared key. To be called before gRPC starts.
void Tls13Only();

}  // namespace kvd
