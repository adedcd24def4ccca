// The exit statuses that scripts rely on, and which error gives which.

#pragma once

#include "absl/status/status.h"

namespace kvd::kvctl {

enum ExitCode : int {
  kOk = 0,
  kError = 1,
  kUsage = 2,        // The command line, or an argument that the daemon does not accept.
  kDegraded = 3,     // The question was answered, and the answer is that something is wrong.
  kUnreachable = 4,  // No daemon answered.
  kNotFound = 5,     // The daemon answered; what was named is not there.
};

inline ExitCode ExitCodeOf(const absl::Status& status) {
  switch (status.code()) {
    case absl::StatusCode::kOk:
      return kOk;
    case absl::StatusCode::kInvalidArgument:
      return kUsage;
    case absl::StatusCode::kUnavailable:
    case absl::StatusCode::kDeadlineExceeded:
      return kUnreachable;
    case absl::StatusCode::kNotFound:
      return kNotFound;
    default:
      return kError;
  }
}

}  // namespace kvd::kvctl
