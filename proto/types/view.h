// Debian's absl::string_view is not std::string_view, and its functions take the former only.

#pragma once

#include <string_view>

#include "absl/strings/string_view.h"

namespace kvd {

inline absl::string_view View(std::string_view text) { return {text.data(), text.size()}; }

}  // namespace kvd
