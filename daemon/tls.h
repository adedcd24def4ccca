// What TLS needs: the daemon's certificate and key, and the authorities whose clients may connect.
// It is checked before a server starts with it, because a handshake that fails tells the operator
// next to nothing, and gRPC no more than that it does not serve.
//
// Threads: all functions are safe from any; Tls13Only() before gRPC starts.

#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"

namespace kvd {

// Each returns what is wrong with a PEM file now, or nothing. None says anything about the contents
// of a key.
// The first certificate is good now. Those behind it vouch for it; clients look at them.
std::string CheckCertificate(const std::string& path);
// Of at least one certificate, one at least is good now: old ones stay while clients change.
std::string CheckAuthorities(const std::string& path);
// A private key without a password that belongs to the certificate in the other file.
std::string CheckKey(const std::string& path, const std::string& certificate_path);

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

// Reads the three files, and checks the very bytes that it returns: the files may have changed
// since they were checked. kInvalidArgument names the option and what is wrong, as above.
absl::StatusOr<TlsIdentity> ReadTls(const TlsPaths& paths);

// What handshakes use: each asks for it, and a reload renews it. Connections that are there go on.
class TlsSource {
 public:
  explicit TlsSource(TlsIdentity identity) : identity_(std::move(identity)) {}

  // For the handshakes from now on. The options whose files held something else before.
  std::vector<std::string> Renew(TlsIdentity identity);
  // What there is now, unless it is the version that the caller knows (0: none), which is set.
  std::optional<TlsIdentity> NewerThan(uint64_t& version) const;

 private:
  mutable absl::Mutex mu_;
  TlsIdentity identity_ ABSL_GUARDED_BY(mu_);
  uint64_t version_ ABSL_GUARDED_BY(mu_) = 1;
};

// Makes TLS 1.3 the only version that gRPC's servers of this process agree to. gRPC 1.51 has no
// option for it: its list of cipher suites, which only TLS 1.2 heeds, is set to one that nobody can
// use, because it takes a pre-shared key. To be called before gRPC starts.
void Tls13Only();

}  // namespace kvd
