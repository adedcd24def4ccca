// The gateway: kvd for clients without shared memory, at PATH.stream and, with TLS, over TCP. A
// gRPC server with threads of its own that serves kvd.v1.Engine (without what is about shared
// memory) and kvd.v1.Transfer, which streams bytes.
//
// To the control thread it is one more front end: it posts plain requests to the inbox and waits.
// The control thread never touches a byte of it, and everything that clients could multiply has a
// bound: connections, sessions, calls, streams (each with one thread and at most 16 MiB), messages.
//
// Who is calling. Over TCP each call is its certificate's: gRPC tells the certificate of the very
// connection that brought the call. On the Unix socket gRPC tells only "fd:N", and N may be used
// again while calls of the connection before are still queued, so a call may be taken for that of
// whoever has N now. It gains nothing: what acts for a tenant is the token of a session, 16 random
// bytes, and they travel only as the answer of OpenSession, over the connection that asked. A
// connection whose descriptor was used again is closed, and an answer to it goes nowhere. So who
// hears a token is who was named by the kernel when N was theirs.
//
// The life of a session: OpenSession answers once and stays open; the session ends when that call
// does, which gRPC notices whatever became of the client (HTTP/2 keepalive over TCP).
//
// Threads: its own. Construct, stop and destroy on one thread, while the control thread runs.

#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "daemon/copier_pool.h"
#include "daemon/domains.h"
#include "daemon/events.h"
#include "daemon/gateway_listener.h"
#include "daemon/gateway_sessions.h"
#include "daemon/inbox.h"
#include "daemon/metrics.h"
#include "daemon/tls.h"
#include "proto/types/verified_copy.h"

namespace kvd {

class Gateway {
 public:
  struct Options {
    std::string path;                // Of the Unix socket.
    int listener = -1;               // Listens there already, and stays the caller's; -1: bind it.
    std::string tcp;                 // "HOST:PORT", empty: none.
    const TlsSource* tls = nullptr;  // Of `tcp`, outlives this. Requires: set when `tcp` is.
    GatewaySessions::Options bounds;
    uint32_t max_connections = 512;  // Of each of the two.
    // Of gRPC, for messages on their way in and out.
    size_t max_message_memory = size_t{512} << 20;
    int keepalive_ms = 30'000;          // After which a silent peer is asked whether it is there.
    bool count_operations = true;       // How long each call took.
    GatewayMetrics* metrics = nullptr;  // Outlive this. Null: nobody counts.
    StrangerCounts* strangers = nullptr;
  };

  // Binds; nobody is let in before Serve(). Collaborators must outlive this.
  static absl::StatusOr<std::unique_ptr<Gateway>> Start(Inbox& inbox, EventRing& events,
                                                        CopierPool& copiers, const Copier& copier,
                                                        Domains& domains, Options options);
  ~Gateway();

  void Serve();

  // Refuses what comes, cancels what is under way, and waits for it. Idempotent. Requires: the
  // control thread runs, and ends waits, if Serve() was called.
  void Stop();

  const std::string& tcp_address() const;  // As bound; empty: no TCP.

 private:
  class Impl;
  explicit Gateway(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace kvd
