// The operator's service at PATH.admin: a gRPC server with threads and a queue of its own, so that
// a person who looks never stands in an engine's way. It asks the control thread through the inbox,
// a little at a time.
//
// Threads: its own. Construct and destroy on one thread.

#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "daemon/inbox.h"

namespace kvd {

class AdminServer {
 public:
  struct Options {
    std::string path;      // Of the socket.
    std::string endpoint;  // What --listen said.
    std::string metrics;   // HOST:PORT where monitors ask; empty: nowhere.
    std::string policy;
    std::string copy_loops;  // What calibration chose.
  };

  static absl::StatusOr<std::unique_ptr<AdminServer>> Start(Inbox& inbox, const Options& options);
  ~AdminServer();  // Ends at once; calls under way are cancelled.

 private:
  class Impl;
  explicit AdminServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace kvd
