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
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "daemon/events.h"
#include "daemon/inbox.h"
#include "daemon/metrics.h"

namespace kvd {

class AdminServer {
 public:
  // The options in force.
  struct ConfigView {
    struct Entry {
      std::string name;
      std::string value;
      std::string source;  // "default", "file", "flag" or "environment".
      bool live = false;   // A reload can change it.
    };
    std::string file;  // Empty: none.
    std::vector<Entry> entries;
  };
  struct ReloadOutcome {
    std::vector<std::string> changed;  // Names of options.
    std::vector<std::string> needs_restart;
  };
  struct Options {
    std::string path;      // Of the socket.
    std::string endpoint;  // What --listen said.
    std::string metrics;   // HOST:PORT where monitors ask; empty: nowhere.
    std::string tcp;       // HOST:PORT for clients without shared memory; empty: none.
    std::string policy;
    std::string copy_loops;              // What calibration chose.
    uint64_t drain_timeout_ms = 30'000;  // Of a drain whose caller names none.
    // What people call a domain. Safe from any thread.
    std::function<std::string(DomainId)> domain_name = NameOfUser;
    const ServiceMetrics* service = nullptr;  // How long calls took; null: not told.
    // Both on threads of ours. Empty: no configuration to tell, or to read again.
    std::function<ConfigView()> config;
    std::function<absl::StatusOr<ReloadOutcome>()> reload;
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
