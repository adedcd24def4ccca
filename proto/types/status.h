// System errors as absl::Status, in one way everywhere.

#pragma once

#include <cerrno>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace kvd {

// The canonical code for `error` (an errno) and "what: strerror".
inline absl::Status ErrnoStatus(int error, absl::string_view what) {
  return absl::ErrnoToStatus(error, what);
}

}  // namespace kvd
