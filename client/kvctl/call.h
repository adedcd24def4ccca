// One run of one verb: what was asked on the command line, where the answer goes, and the daemon.
// Verbs are functions from a Call to an exit code or an error; verbs.h lists them.

#pragma once

#include <functional>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "client/kvctl/connection.h"
#include "client/kvctl/environment.h"
#include "client/kvctl/exit_code.h"
#include "client/kvctl/tree.h"

namespace kvd::kvctl {

// Options that every verb understands.
struct Options {
  std::string endpoint;
  Format format = Format::kTable;
  bool color = false;
  bool yes = false;                            // Destroy without asking.
  absl::Duration timeout = absl::Seconds(10);  // Of one call to the daemon.
  std::optional<absl::Duration> watch;         // Again and again, that often.
};

struct Call {
  const Options& options;
  Environment& environment;
  Connection& daemon;

  std::ostream& out() { return environment.out; }
  bool color() const { return options.color; }
  // For machines: prints the tree and says so. False: a table is wanted.
  bool Printed(const Tree& tree) {
    if (options.format == Format::kTable) return false;
    PrintTree(tree, options.format, environment.out);
    return true;
  }
};

using Verb = std::function<absl::StatusOr<ExitCode>(Call&)>;

// Before something that cannot be taken back. OK: --yes was given, or somebody said yes.
// kInvalidArgument: there is nobody to ask. kCancelled: the answer was no.
absl::Status Confirm(Call& call, const std::string& question);
// What Confirm() would say where it can say so without asking: before the daemon is asked anything.
absl::Status MayConfirm(const Call& call);

}  // namespace kvd::kvctl
