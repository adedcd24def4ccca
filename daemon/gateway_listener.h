// Where clients of the gateway connect: a Unix socket, and a TCP port if there is one. It accepts
// connections itself, because gRPC would neither say who is at the other end of a Unix socket nor
// bound how many there are.
//
// On the Unix socket the peer's credentials are read before gRPC sees the connection, and kept
// under the number of its descriptor, which is how gRPC names the connection of a call ("fd:N"). N
// is used again after the connection has gone, perhaps while its last calls are still queued: such
// a call finds the credentials of whoever has N now. See Gateway for why nobody gains anything by
// it.
//
// Threads: its own accepts. OfDescriptor() is safe from any thread.

#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/synchronization/mutex.h"
#include "daemon/domains.h"
#include "proto/types/block.h"

namespace kvd {

// "HOST:PORT", "[V6]:PORT"; empty when it is neither.
struct HostPort {
  std::string host;
  std::string port;
};
std::optional<HostPort> SplitHostPort(const std::string& address);

class GatewayListener {
 public:
  // Takes the descriptor of a new connection.
  using NewConnection = std::function<void(int fd)>;

  struct Options {
    std::string path;   // Of the Unix socket.
    int listener = -1;  // Listens there already, and stays the caller's; -1: bind it.
    std::string tcp;    // "HOST:PORT"; empty: none.
    // Connections, of each of the two sockets; a user gets at most half of those of the Unix one.
    uint32_t max_connections = 512;
  };
  struct Peer {
    uid_t uid = 0;
    std::optional<DomainId> domain;  // Empty: the rules name none for this user.
  };

  // Binds (the Unix socket unless it is given one). Nothing is accepted before Run(). Errors name
  // the address.
  static absl::StatusOr<std::unique_ptr<GatewayListener>> Open(const Options& options,
                                                               Domains& domains);
  ~GatewayListener();

  void Run(NewConnection unix_connection, NewConnection tcp_connection);
  void Stop();  // No more connections come; those that have are not touched.

  // Who is at the other end of the Unix connection `fd`; empty: nobody ever was.
  std::optional<Peer> OfDescriptor(int fd) const;
  // "HOST:PORT" as bound; empty: no TCP.
  const std::string& tcp_address() const { return tcp_address_; }

 private:
  // A connection that was handed over. gRPC closes it and does not say so; the number of the socket
  // tells whether the descriptor is still this connection.
  struct Connection {
    ino_t socket = 0;
    bool tcp = false;
    Peer peer;
  };

  GatewayListener(const Options& options, Domains& domains)
      : options_(options), domains_(domains) {}
  absl::Status ListenUnix();
  absl::Status ListenTcp();
  void AcceptLoop();
  void AcceptUnix();
  void AcceptTcp();
  bool Register(int fd, Connection connection);

  const Options options_;
  Domains& domains_;
  NewConnection unix_connection_;
  NewConnection tcp_connection_;
  int unix_ = -1;
  int tcp_ = -1;
  int wake_ = -1;
  std::string tcp_address_;
  std::thread thread_;

  mutable absl::Mutex mu_;
  absl::flat_hash_map<int, Connection> connections_ ABSL_GUARDED_BY(mu_);
};

}  // namespace kvd
