#include "client/kvctl/call.h"

#include "absl/strings/ascii.h"

namespace kvd::kvctl {

absl::Status MayConfirm(const Call& call) {
  if (call.options.yes || call.environment.in_is_terminal) return absl::OkStatus();
  return absl::InvalidArgumentError(
      "this cannot be taken back, and there is no terminal to ask on: add --yes to do it");
}

absl::Status Confirm(Call& call, const std::string& question) {
  if (absl::Status status = MayConfirm(call); !status.ok()) return status;
  if (call.options.yes) return absl::OkStatus();
  call.environment.err << question << " [y/N] " << std::flush;
  std::string answer;
  std::getline(call.environment.in, answer);
  absl::StripAsciiWhitespace(&answer);
  absl::AsciiStrToLower(&answer);
  if (answer == "y" || answer == "yes") return absl::OkStatus();
  return absl::CancelledError("nothing was done");
}

}  // namespace kvd::kvctl
