// Errors of the system and of callers as absl::Status, in one way everywhere.

#pragma once

#include <cerrno>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"

namespace kvd {

// The canonical code for `error` (an errno) and "what: strerror".
inline absl::Status ErrnoStatus(int error, absl::string_view what) {
  return absl::ErrnoToStatus(error, what);
}

// A caller's mistake: kInvalidArgument, and "field: why".
inline absl::Status InvalidField(absl::string_view field, absl::string_view why) {
  return absl::InvalidArgumentError(absl::StrCat(field, ": ", why));
}

}  // namespace kvd
