// doctor: is this machine right for kvd, is this daemon right on it, and what to do about each
// thing that is not.
//
// Judging is pure: facts in, findings out.

#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "client/kvctl/machine.h"
#include "proto/admin.grpc.pb.h"

namespace kvd::kvctl {

// FAIL: kvd does not work, loses a promise, or is open to whom it should not be. WARN: it works,
// and slower or with less room than it could.
enum class Level { kOk, kWarn, kFail };

struct Finding {
  Level level = Level::kOk;
  std::string check;   // A stable name: "huge_pages".
  std::string text;    // What was seen.
  std::string advice;  // What to do; empty where all is well.
};

// What the daemon says of itself. Only `reached` counts where that is an error.
struct DaemonFacts {
  absl::Status reached;
  v1::StatusReply status;
  v1::TiersReply tiers;
  v1::SessionsReply sessions;
  v1::NamespacesReply namespaces;
};

// In the order in which a reader wants them: the daemon, its sockets, memory, kernel, limits.
std::vector<Finding> Examine(const MachineFacts& machine, const DaemonFacts& daemon,
                             const std::string& client_version);

}  // namespace kvd::kvctl
