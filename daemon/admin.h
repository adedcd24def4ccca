// The operator's service at PATH.admin: a gRPC server with threads and a queue of its own, so that
// a person who looks never stands in an engine's way. It asks the control thread through the inbox,
// a little at a time, and makes messages of the answers on threads of its own. At most eight calls
// read events at a time: each has a thread while it lasts.
//
// Threads: its own. Construct and destroy on one thread.

#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "daemon/events.h"
#include "daemon/inbox.h"
#include "daemon/metrics.h"
#include "daemon/reload.h"

namespace kvd {

class AdminServer {
 public:
  struct Options {
    std::string path;      // Of the socket.
    int listener = -1;     // Listens there already, and outlives the server; -1: bind it.
    std::string endpoint;  // What --listen said.
    std::string metrics;   // HOST:PORT where monitors ask; empty: nowhere.
    std::string tcp;       // HOST:PORT for clients without shared memory; empty: none.
    const ServiceMetrics* service = nullptr;  // How long calls take; null: nobody times them.
    std::string policy;
    std::string copy_loops;              // What calibration chose.
    ConfigReloader* config = nullptr;    // What is in force; null: nobody may ask or change it.
    uint64_t drain_timeout_ms = 15'000;  // Of a drain whose caller names none, without `config`.
    // What people call a domain. Safe from any thread.
    std::function<std::string(DomainId)> domain_name = NameOfUser;
  };
  // "uid:1000": a domain is the user id of its processes.
  static std::string NameOfUser(DomainId domain);

  static absl::StatusOr<std::unique_ptr<AdminServer>> Start(Inbox& inbox, EventRing& events,
                                                            const Options& options);
  ~AdminServer();  // Ends at once; calls under way are cancelled.

 private:
  class Impl;
  explicit AdminServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace kvd
